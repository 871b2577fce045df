"""The check of links to other hosts, against a server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.test_docs import PAGES
from tools.links import links, problem


class _Handler(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "gone"), [(200, False), (403, False), (404, True), (500, True)])
def test_an_address_that_cannot_be_read_is_a_problem(status: int, gone: bool, address: str) -> None:
    assert bool(problem(f"{address}/{status}")) is gone


def test_each_address_is_asked_once_and_examples_never(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](https://a.test/x#1) [b](https://a.test/x#2) [c](http://localhost:8888/)"
        " [d](https://kernels.example.org/) [e](other.md)"
    )
    assert links([page]) == {"https://a.test/x": "page.md"}


def test_the_pages_have_such_addresses() -> None:
    assert len(links(PAGES)) > 10
