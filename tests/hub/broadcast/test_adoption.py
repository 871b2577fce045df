"""Markers in cells of a kernel that ran before the bridge started."""

import pytest

from kbridge.flow.journal import Place
from kbridge.hub.settings import HubSettings
from kbridge.wire import v1
from kbridge.wire.build import build
from kbridge.wire.frames import payload
from kbridge.wire.message import Channel, Message
from tests.hub.rig import INFO, Rig


@pytest.fixture
async def adopted():
    rig = Rig(HubSettings(limit_rate=False), adopted=True)
    yield rig
    await rig.hub.aclose()


def shown(rig: Rig) -> list[tuple[str, str]]:
    """Return type and parent of all messages in the journal; markers by name."""
    stretch = rig.hub.journal.read(Place(0, 0, 0), 1 << 20)
    messages = [v1.decode(payload(f)) for f in stretch.frames] if stretch else []
    return [
        (
            "marker" if b"[kbridge: the server was restarted" in m.content else m.msg_type,
            m.parent_id,
        )
        for m in messages
    ]


def cell(msg_id: str) -> bytes:
    return build(
        Channel.SHELL, "execute_request", {}, session="c", date="now", msg_id=msg_id
    ).header


def output(rig: Rig, msg_type: str, parent: bytes = b"{}", **content) -> Message:
    return rig.message(Channel.IOPUB, msg_type, content, parent)


def status(rig: Rig, state: str, parent: bytes) -> Message:
    return output(rig, "status", parent, execution_state=state)


@pytest.mark.parametrize("kind", ["stream", "display_data", "error", "status"])
async def test_a_cell_that_was_running_gets_one_marker_before_all_output(adopted, kind) -> None:
    rig, old = adopted, cell("old")
    rig.say(status(rig, "idle", old) if kind == "status" else output(rig, kind, old))
    for text in ("two", "three"):
        rig.say(rig.stream(text, old))
    rig.say(status(rig, "idle", old))
    rig.say(rig.stream("x", cell("older")))
    got = shown(rig)
    assert got[0] == ("marker", "old")
    assert [kind for kind, _ in got].count("marker") == 1


async def test_a_cell_that_begins_now_gets_none(adopted) -> None:
    rig = adopted
    for i in range(3):
        parent = cell(f"cell-{i}")
        rig.say(status(rig, "busy", parent), output(rig, "stream", parent))
        rig.say(status(rig, "idle", parent))
    assert "marker" not in [kind for kind, _ in shown(rig)]
    assert len(shown(rig)) == 9


async def test_requests_that_begin_meanwhile_do_not_take_the_marker_away(adopted) -> None:
    """A page that connects sends a debugger request on control while the cell is silent."""
    rig, old, debug = adopted, cell("old"), cell("debug")
    rig.say(status(rig, "busy", debug), status(rig, "idle", debug))
    rig.say(output(rig, "stream", old))
    assert shown(rig) == [
        ("status", "debug"),
        ("status", "debug"),
        ("marker", "old"),
        ("stream", "old"),
    ]


async def test_messages_without_a_parent_or_of_a_probe_get_none_and_take_none(adopted) -> None:
    rig = adopted
    rig.say(output(rig, "status", execution_state="starting"))
    rig.say(output(rig, "stream"))
    probe = rig.probes()[-1].header
    rig.say(status(rig, "busy", probe), output(rig, "stream", probe))
    assert "marker" not in [kind for kind, _ in shown(rig)]
    rig.say(output(rig, "stream", cell("old")))
    assert shown(rig)[-2:] == [("marker", "old"), ("stream", "old")]


async def test_a_kernel_that_was_started_for_the_hub_gets_none(rig) -> None:
    rig.say(output(rig, "stream", cell("old")))
    assert shown(rig) == [("stream", "old")]


async def test_the_next_process_of_an_adopted_kernel_is_not_adopted(adopted) -> None:
    adopted.hub.reconnect(INFO)
    adopted.say(output(adopted, "stream", cell("old")))
    assert shown(adopted) == [("stream", "old")]
