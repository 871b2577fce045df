import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from kbridge.errors import BridgeError, HubClosed, KernelMessageError, KernelStartError
from kbridge.kernels.lifecycle.seed import Seed, load_seed, run_seed


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


async def test_from_a_path(path):
    assert await load_seed(str(path)) == Seed("py", ("a = 1", "b"))


async def test_from_a_file_url(path):
    assert await load_seed(path.as_uri()) == Seed("py", ("a = 1", "b"))


async def test_older_notebooks_are_converted(tmp_path, notebook):
    path = tmp_path / "v3.ipynb"
    path.write_text(json.dumps(nbformat.convert(notebook, 3)))
    assert (await load_seed(str(path))).cells == ("a = 1", "b")


async def test_from_a_server(path):
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
async def test_no_notebook(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(BridgeError, match=r"x\.ipynb cannot be read"):
        await load_seed(str(path))


async def test_no_file(tmp_path):
    with pytest.raises(BridgeError, match="FileNotFoundError"):
        await load_seed(str(tmp_path / "none.ipynb"))


def test_a_seed_fits_its_kernelspec_and_one_without_fits_all():
    assert Seed("py", ()).fits("py")
    assert not Seed("py", ()).fits("r")
    assert Seed("", ()).fits("r")


@pytest.fixture
def hub(hubs):
    return hubs.open("k", {})


async def test_cells_run_in_their_order_without_stdin(hub):
    await run_seed(hub, Seed("", ("a", "b")), 1)
    assert [content["code"] for _, content, _ in hub.requests] == ["a", "b"]
    assert {(msg_type, channel) for msg_type, _, channel in hub.requests} == {
        ("execute_request", "shell")
    }
    assert not any(content["allow_stdin"] for _, content, _ in hub.requests)


REPLIES = [
    (
        {"status": "error", "ename": "E", "evalue": "why"},
        "cell 2 of the seed notebook failed: E: why",
    ),
    ({"status": "aborted"}, "cell 2 .* failed: aborted"),
    (None, "cell 2 .* did not end within 1 s"),
    (KernelMessageError("nonsense"), "cell 2 .* was not answered: nonsense"),
]


@pytest.mark.parametrize(("reply", "reason"), REPLIES)
async def test_a_cell_that_fails_is_named_and_the_rest_is_not_run(hub, reply, reason):
    def answer(msg_type, content):
        if content["code"] != "bad":
            return {"status": "ok"}
        if isinstance(reply, Exception):
            raise reply
        return reply

    hub.reply = answer
    with pytest.raises(KernelStartError, match=reason):
        await run_seed(hub, Seed("", ("good", "bad", "later")), 1)
    assert len(hub.requests) == 2


async def test_our_own_faults_stay_ours(hub):
    def answer(msg_type, content):
        raise HubClosed("gone")

    hub.reply = answer
    with pytest.raises(HubClosed):
        await run_seed(hub, Seed("", ("a",)), 1)
