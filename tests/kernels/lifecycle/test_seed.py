import asyncio
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from kbridge.errors import BridgeError, HubClosed, KernelMessageError, KernelStartError
from kbridge.kernels.lifecycle.seed import Seed, load_seed, run_seed
from kbridge.wire.message import Channel
from tests.hub.rig import INFO
from tests.support.waiting import TIMEOUT


@pytest.fixture
def notebook():
    cells = [
        new_code_cell("a = 1"),
        new_markdown_cell("# no"),
        new_code_cell("  "),
        new_code_cell("b"),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "py", "display_name": "Py"}})


@pytest.fixture
def path(tmp_path, notebook):
    path = tmp_path / "a seed.ipynb"
    nbformat.write(notebook, path)
    return path


async def test_a_seed_is_read_from_a_path(path):
    assert await load_seed(str(path)) == Seed("py", ("a = 1", "b"))


async def test_a_seed_is_read_from_a_file_url(path):
    assert await load_seed(path.as_uri()) == Seed("py", ("a = 1", "b"))


async def test_older_notebooks_are_converted(tmp_path, notebook):
    path = tmp_path / "v3.ipynb"
    path.write_text(json.dumps(nbformat.convert(notebook, 3)))
    assert (await load_seed(str(path))).cells == ("a = 1", "b")


async def test_a_seed_is_read_from_a_server(path):
    class Notebook(RequestHandler):
        def get(self):
            self.write(path.read_bytes())

    sock, port = bind_unused_port()
    server = HTTPServer(Application([("/seed.ipynb", Notebook)]))
    server.add_sockets([sock])
    try:
        assert (await load_seed(f"http://127.0.0.1:{port}/seed.ipynb")).kernel_name == "py"
        with pytest.raises(BridgeError, match="404") as caught:
            await load_seed(f"http://127.0.0.1:{port}/none.ipynb?token=geheim")
        assert "geheim" not in str(caught.value)
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.parametrize("text", ["", "{}", "no json"])
async def test_a_seed_that_is_not_a_notebook_is_refused(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(BridgeError, match=r"x\.ipynb cannot be read"):
        await load_seed(str(path))


async def test_a_missing_seed_is_refused(tmp_path):
    with pytest.raises(BridgeError, match="FileNotFoundError"):
        await load_seed(str(tmp_path / "none.ipynb"))


def test_a_seed_fits_its_kernelspec_and_one_without_fits_all():
    assert Seed("py", ()).fits("py")
    assert not Seed("py", ()).fits("r")
    assert Seed("", ()).fits("r")


@pytest.fixture
async def kernel(hubs):
    hub = hubs.open("k", INFO)
    assert await hub.wait_ready(TIMEOUT)
    return hubs.kernel("k")


async def test_cells_run_in_order_on_shell_and_without_stdin(kernel):
    await run_seed(kernel.hub, Seed("", ("a", "b")), TIMEOUT)
    assert [content["code"] for _, content, _ in kernel.requests] == ["a", "b"]
    assert {(msg_type, channel) for msg_type, _, channel in kernel.requests} == {
        ("execute_request", Channel.SHELL)
    }
    assert not any(content["allow_stdin"] for _, content, _ in kernel.requests)


REPLIES = [
    (
        {"status": "error", "ename": "E", "evalue": "why"},
        "cell 2 of the seed notebook failed: E: why",
    ),
    ({"status": "aborted"}, "cell 2 .* failed: aborted"),
    (None, "cell 2 .* did not end within 0.1 s"),
]


@pytest.mark.parametrize(("reply", "reason"), REPLIES)
async def test_a_cell_that_fails_is_named_and_the_rest_is_not_run(kernel, reply, reason):
    def answer(msg_type, content):
        return reply if content["code"] == "bad" else {"status": "ok"}

    kernel.reply = answer
    with pytest.raises(KernelStartError, match=reason):
        await run_seed(kernel.hub, Seed("", ("good", "bad", "later")), 0.1 if reply is None else 20)
    assert len(kernel.requests) == 2


async def test_a_reply_that_cannot_be_read_is_an_error_of_the_start(kernel, monkeypatch):
    # The hub drops such a message before it gets here, so it is not sent through the kernel.
    async def fail(*_, **__):
        raise KernelMessageError("nonsense")

    monkeypatch.setattr(kernel.hub, "request", fail)
    with pytest.raises(KernelStartError, match=r"cell 1 .* was not answered: nonsense"):
        await run_seed(kernel.hub, Seed("", ("a",)), TIMEOUT)


async def test_a_hub_that_closes_during_the_seed_is_not_an_error_of_the_kernel(kernel):
    kernel.reply = lambda *_: None
    run = asyncio.create_task(run_seed(kernel.hub, Seed("", ("a",)), TIMEOUT))
    async with asyncio.timeout(TIMEOUT):
        while not kernel.requests:  # noqa: ASYNC110 - links in memory set no event
            await asyncio.sleep(0)
    await kernel.hub.aclose()
    with pytest.raises(HubClosed):
        await run
