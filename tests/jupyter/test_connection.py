"""The parts of kbridge's connection class that are specific to Jupyter Server."""

from __future__ import annotations

import pytest

from kbridge.jupyter import ZMQChannelsWebsocketConnection

pytestmark = [
    pytest.mark.parametrize("impl", ["jupyter"], indirect=True),
    pytest.mark.parametrize("dialect", ["v1"], indirect=True),
]


async def test_a_kernel_without_ports_closes_its_websocket_without_an_exception(
    world, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(world.kernel, "get_connection_info", dict)
    conn, handler = await world.prepare()
    await handler.open("a-kernel")
    assert handler.closes == [(1012, "the connection info has no shell_port")]
    assert conn not in ZMQChannelsWebsocketConnection._open_sockets
    assert "Cannot connect to kernel" in caplog.text
    assert world.kernels._kernel_connections == {conn.kernel_id: 0}


@pytest.mark.parametrize(
    "setting", [{"journal_limit": 0}, {"history_limit": -1}, {"rate_limit_window": 0.0}], ids=str
)
async def test_impossible_settings_close_the_websocket_without_an_exception(
    world, setting, caplog
) -> None:
    """Tornado would log what escapes with the URL, which contains the token."""
    world.configure(**setting)
    conn, handler = await world.prepare()
    await handler.open("a-kernel")
    [(code, reason)] = handler.closes
    [name] = setting
    assert (code, reason.startswith(name)) == (1011, True)
    assert conn not in ZMQChannelsWebsocketConnection._open_sockets
    assert reason in caplog.text
    assert world.kernels._kernel_connections == {conn.kernel_id: 0}


async def test_a_hook_that_disconnects_on_the_first_message_leaves_no_cursor(
    world,
) -> None:
    class Hasty(world.base):
        def handle_outgoing_message(self, stream, outgoing_msg) -> None:
            self.disconnect()

    first, _ = await world.open()
    first.disconnect()
    world.say(world.stream("missed"))
    hasty, _ = await world.open(Hasty)
    assert hasty._cursor is None
    assert hasty.hub.connections == 0
