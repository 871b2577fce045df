"""The policies that the settings select."""

import json
import logging
from typing import Any

import pytest

from kbridge.flow.policy import DROP, PASS, Policy, judge
from kbridge.hub.broadcast.policy_chain import incoming, outgoing, pace, rate_limit
from kbridge.hub.notices import Notices
from kbridge.hub.settings import HubSettings
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from tests.hub.rig import StoppedClock

LOG = logging.getLogger("kbridge.hub")
ERROR = {"ename": "KeyError", "evalue": "secret", "traceback": ["secret"]}


def message(msg_type: str, content: dict[str, Any]) -> Message:
    return build(Channel.IOPUB, msg_type, content, session="k", date="now")


def chosen(**settings: Any) -> list[Policy]:
    made = HubSettings(**settings)
    limit = rate_limit(made, Notices(StoppedClock()), LOG)
    return outgoing(made, pace(made), limit)


def passed(msg: Message, **settings: Any) -> Any:
    policies = chosen(**settings)
    return judge(policies, msg, msg.msg_type, 0.0)


def test_all_types_may_be_sent_unless_some_are_named() -> None:
    assert incoming(HubSettings()) == []
    policies = incoming(HubSettings(allowed_message_types=("kernel_info_request",)))
    allowed, other = (message(t, {}) for t in ("kernel_info_request", "execute_request"))
    assert judge(policies, allowed, allowed.msg_type, 0.0) is PASS
    assert judge(policies, other, other.msg_type, 0.0) == DROP


def test_tracebacks_are_shown_unless_they_are_hidden() -> None:
    msg = message("error", ERROR)
    assert passed(msg) is PASS
    (hidden,) = passed(msg, allow_tracebacks=False, traceback_replacement_message="no")
    assert json.loads(hidden.content)["traceback"] == ["no"]
    assert b"secret" not in hidden.content


def test_nothing_is_limited_where_that_is_off() -> None:
    assert chosen(limit_rate=False) == []
    assert chosen(limit_rate=False, rate_limit_policy="drop") == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"iopub_msg_rate_limit": 1.0, "rate_limit_window": 2.0}, "iopub_msg_rate_limit"),
        ({"iopub_data_rate_limit": 100.0, "rate_limit_window": 9.0}, "iopub_data_rate_limit"),
    ],
)
def test_each_limit_is_the_settings(settings, named, caplog) -> None:
    policies = chosen(rate_limit_policy="drop", **settings)
    msg = message("stream", {"name": "stdout", "text": "x" * 200})
    verdicts = [judge(policies, msg, "stream", 0.0) for _ in range(10)]
    assert verdicts[0] is PASS
    (told,) = (v for v in verdicts if v)
    assert named in json.loads(told[0].content)["text"]
    assert verdicts[-1] == DROP
    assert "rate exceeded" in caplog.text


def test_where_output_is_joined_and_paced_none_is_dropped() -> None:
    policies = chosen(iopub_msg_rate_limit=1.0, iopub_data_rate_limit=1.0)
    msg = message("stream", {"name": "stdout", "text": "x" * 200})
    assert len(policies) == 1
    assert all(judge(policies, msg, "stream", 0.0) is PASS for _ in range(100))
    assert not pace(HubSettings(rate_limit_policy="drop")).limits
    assert not pace(HubSettings(limit_rate=False)).limits
