"""Messages that are not passed on are counted, and logged at most once per minute."""

import logging

from kbridge.hub.rejected import IGNORED, REJECTED, DroppedMessages
from tests.hub.rig import StoppedClock

LOG = logging.getLogger("kbridge.hub")


def test_the_first_rejected_message_is_logged_with_its_channel_and_reason(caplog) -> None:
    dropped = DroppedMessages(REJECTED, "a-kernel", StoppedClock(), LOG)
    dropped.record("iopub", "an invalid signature")
    assert dropped.total == 1
    assert caplog.messages == [
        "Rejected 1 message(s) of kernel a-kernel. The last, on iopub: an invalid signature"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_ignored_messages_are_logged_once_per_minute_with_their_number(caplog) -> None:
    clock = StoppedClock()
    dropped = DroppedMessages(IGNORED, "a-kernel", clock, LOG)
    for reason in ("one", "two", "three"):
        dropped.record(reason)
    assert len(caplog.messages) == 1
    clock.now += 60
    dropped.record("four")
    assert caplog.messages[1:] == [
        "Ignored 3 message(s) of clients of kernel a-kernel. The last: four"
    ]
    assert dropped.total == 4
