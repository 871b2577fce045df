"""One client and one ipykernel in both dialects."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.client import SLEEP, KernelClient, attach
from tests.support.server import Server

pytestmark = pytest.mark.kernel

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
async def ws(server: Server, kernel: str, dialect: str) -> AsyncIterator[KernelClient]:
    async with attach(server, kernel, dialect) as client:
        # ipykernel 6.29 aborts a cell that arrives right after the error of another one.
        await client.request("kernel_info_request", {})
        client.seen.clear()
        yield client


async def test_an_execution_has_all_its_messages(ws: KernelClient) -> None:
    done = await ws.execute("6 * 7")
    assert done.reply["status"] == "ok"
    assert done.types == ["busy", "execute_input", "execute_result", "idle"]
    assert done.of("execute_result")[0]["content"]["data"] == {"text/plain": "42"}
    assert {m["parent_header"]["session"] for m in done.messages} == {ws.session}


async def test_kernel_info_is_answered(ws: KernelClient) -> None:
    done = await ws.request("kernel_info_request", {})
    assert done.reply["language_info"]["name"] == "python"
    assert done.reply["protocol_version"].startswith("5.")


async def test_stdout_and_stderr_are_separate(ws: KernelClient) -> None:
    done = await ws.execute("import sys; print('to you'); print('beware', file=sys.stderr)")
    assert done.text("stdout") == "to you\n"
    assert done.text("stderr") == "beware\n"


async def test_every_character_is_unchanged(ws: KernelClient) -> None:
    text = "héllo — 世界 🐍 \x7f \u2028 \\ \" ' </script> \0"
    done = await ws.execute(f"print({text!a})\n{text[:12]!r}")
    assert done.text() == text + "\n"


async def test_a_thousand_lines_arrive_in_order(ws: KernelClient) -> None:
    done = await ws.execute("for i in range(500): print(i, flush=True)")
    assert done.text() == "".join(f"{i}\n" for i in range(500))
    assert done.types[-1] == "idle"


async def test_rich_output_arrives(ws: KernelClient) -> None:
    code = f"""
from IPython.display import HTML, Image, display
import base64
handle = display(HTML("<b>bold</b>"), display_id=True)
display(Image(base64.b64decode({PIXEL!r}), format="png"))
handle.update(HTML("<i>slanted</i>"))
"""
    done = await ws.execute(code)
    first, second = (m["content"]["data"] for m in done.of("display_data"))
    assert first["text/html"] == "<b>bold</b>"
    assert base64.b64decode(second["image/png"]) == base64.b64decode(PIXEL)
    (update,) = done.of("update_display_data")
    assert update["content"]["data"]["text/html"] == "<i>slanted</i>"


async def test_an_error_has_its_traceback(ws: KernelClient) -> None:
    done = await ws.execute("1 / 0")
    (error,) = done.of("error")
    assert error["content"]["ename"] == "ZeroDivisionError"
    assert error["content"]["traceback"]
    assert done.reply["status"] == "error"
    assert done.reply["ename"] == "ZeroDivisionError"


async def test_requests_other_than_execute_are_answered(ws: KernelClient) -> None:
    complete = await ws.request("complete_request", {"code": "prin", "cursor_pos": 4})
    assert "print" in complete.reply["matches"]
    inspect = await ws.request(
        "inspect_request", {"code": "print", "cursor_pos": 5, "detail_level": 0}
    )
    assert inspect.reply["found"] is True
    whole = await ws.request("is_complete_request", {"code": "if True:"})
    assert whole.reply["status"] == "incomplete"


async def test_input_is_requested_and_answered(ws: KernelClient) -> None:
    asked = await ws.start("print('hello, ' + input('name? '))", allow_stdin=True)
    *_, prompt = await ws.until(lambda m: m["channel"] == "stdin")
    assert prompt["header"]["msg_type"] == "input_request"
    assert prompt["content"]["prompt"] == "name? "
    assert prompt["parent_header"]["msg_id"] == asked
    await ws.send("input_reply", {"value": "Ada"}, channel="stdin", parent=prompt["header"])
    assert (await ws.finish(asked)).text() == "hello, Ada\n"


async def test_a_running_cell_is_interrupted(ws: KernelClient, server: Server, kernel: str) -> None:
    asked = await ws.start(SLEEP)
    await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
    reply = await server.call("POST", f"/api/kernels/{kernel}/interrupt")
    assert (reply.status, reply.body) == (204, b"")
    done = await ws.finish(asked)
    assert done.reply["ename"] == "KeyboardInterrupt"


async def test_control_answers_while_shell_is_busy(ws: KernelClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    asked = await ws.start(f"print('waiting', flush=True)\nprint(open({str(gate)!r}).read())")
    await ws.until(lambda m: m["content"].get("text", "").startswith("waiting"))
    info = await ws.request("kernel_info_request", {}, channel="control")
    assert info.reply["status"] == "ok"
    assert {m["channel"] for m in info.messages} == {"control", "iopub"}
    gate.write_text("through")
    assert (await ws.finish(asked)).text() == "through\n"


async def test_comms_carry_binary_buffers_both_ways(ws: KernelClient) -> None:
    setup = """
def opened(comm, _msg):
    @comm.on_msg
    def _(msg):
        comm.send(msg["content"]["data"], buffers=[bytes(b)[::-1] for b in msg["buffers"]])
get_ipython().kernel.comm_manager.register_target("mirror", opened)
"""
    assert (await ws.execute(setup)).reply["status"] == "ok"
    comm_id = "c0ffee" + ws.session
    opened = await ws.send(
        "comm_open", {"comm_id": comm_id, "target_name": "mirror", "data": {"ü": 1}}
    )
    await ws.finish(opened, reply=False)
    for buffers in ([b"\x00\x01\xfe\xff"], [b"", bytes(range(256)) * 400, b"\n"], []):
        sent = await ws.send(
            "comm_msg", {"comm_id": comm_id, "data": {"n": len(buffers)}}, buffers=buffers
        )
        done = await ws.finish(sent, reply=False)
        (echo,) = done.of("comm_msg")
        assert echo["content"]["data"] == {"n": len(buffers)}
        assert echo["buffers"] == [b[::-1] for b in buffers]
    closed = await ws.send("comm_close", {"comm_id": comm_id, "data": {}})
    await ws.finish(closed, reply=False)


async def test_a_message_of_twenty_megabytes_arrives(ws: KernelClient) -> None:
    code = (
        "from IPython.display import display\ndisplay({'text/plain': 'x' * 20_000_000}, raw=True)"
    )
    done = await ws.execute(code)
    assert len(done.of("display_data")[0]["content"]["data"]["text/plain"]) == 20_000_000


async def test_a_subshell_runs_beside_a_busy_shell(ws: KernelClient, tmp_path: Path) -> None:
    """A `subshell_id` in the header reaches the kernel; the main shell stays busy."""
    info = await ws.request("kernel_info_request", {})
    if "kernel subshells" not in info.reply.get("supported_features", []):
        pytest.skip("this ipykernel has no subshells")
    made = await ws.request("create_subshell_request", {}, channel="control")
    subshell = made.reply["subshell_id"]
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    asked = await ws.start(f"print('waiting', flush=True)\nprint(open({str(gate)!r}).read())")
    await ws.until(lambda m: m["content"].get("text", "").startswith("waiting"))
    request = {"code": "print('beside')", "silent": False, "store_history": False}
    beside = await ws.request("execute_request", request, header={"subshell_id": subshell})
    assert beside.text() == "beside\n"
    gate.write_text("through")
    assert (await ws.finish(asked)).text() == "through\n"
    await ws.request("delete_subshell_request", {"subshell_id": subshell}, channel="control")


@pytest.mark.parametrize("through", ["kernel", "session"])
async def test_deleting_a_kernel_closes_its_websockets_with_1012(
    server: Server, dialect: str, through: str
) -> None:
    made = await server.call(
        "POST", "/api/sessions", {"path": f"{through}-{dialect}.ipynb", "type": "notebook"}
    )
    kernel_id = made.json()["kernel"]["id"]
    async with attach(server, kernel_id, dialect) as one:
        await one.execute("1")
        path = f"kernels/{kernel_id}" if through == "kernel" else f"sessions/{made.json()['id']}"
        assert (await server.call("DELETE", f"/api/{path}")).status == 204
        assert await one.closed() == (1012, "the kernel was shut down")
