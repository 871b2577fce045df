import json
from pathlib import Path
from typing import Any

import pytest

from kbridge.server.api.rest import find_resource


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    (tmp_path / "kernel.json").write_text("{}")
    (tmp_path / "kernel.js").write_text("1")
    (tmp_path / "logo-64x64.png").write_bytes(b"\x89PNG")
    (tmp_path / "logo-svg.svg").write_text("<svg/>")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.bin").write_bytes(b"\0\1")
    (tmp_path / "leads-out").symlink_to("/etc/passwd")


async def test_listing(running: Any) -> None:
    found = json.loads((await running.ask("GET", "/api/kernelspecs")).body)
    model = {
        "name": "fake",
        "spec": {"display_name": "Fake"},
        "resources": {
            "kernel.js": "/kernelspecs/fake/kernel.js",
            "logo-64x64": "/kernelspecs/fake/logo-64x64.png",
            "logo-svg": "/kernelspecs/fake/logo-svg.svg",
        },
    }
    assert found == {"default": "fake", "kernelspecs": {"fake": model}}
    assert json.loads((await running.ask("GET", "/api/kernelspecs/fake")).body) == model


async def test_every_resource_that_is_listed_exists(start: Any) -> None:
    running = await start(base_url="/b/")
    model = json.loads((await running.ask("GET", "/api/kernelspecs/fake")).body)
    for path in model["resources"].values():
        assert path.startswith("/b/")
        assert (await running.ask("GET", path.removeprefix("/b"))).code == 200


async def test_a_file_whose_name_is_not_utf8_does_not_hide_its_kernelspec(
    running: Any, tmp_path: Path
) -> None:
    before = json.loads((await running.ask("GET", "/api/kernelspecs")).body)
    try:
        (tmp_path / "logo-\udcff.png").write_bytes(b"\x89PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for path in ("/api/kernelspecs", "/api/kernelspecs/fake"):
        assert (await running.ask("GET", path)).code == 200
    assert json.loads((await running.ask("GET", "/api/kernelspecs")).body) == before


async def test_unknown_kernelspecs(running: Any, error_of: Any) -> None:
    for path in ("/api/kernelspecs/other", "/kernelspecs/other/logo-64x64.png"):
        assert error_of(await running.ask("GET", path))[0] == 404


async def test_a_kernelspec_that_cannot_be_read_says_why(running: Any, error_of: Any) -> None:
    """The same error as at the start of a kernel; it was once unhandled."""
    for path in ("/api/kernelspecs/unreadable", "/kernelspecs/unreadable/logo-64x64.png"):
        status, _, message = error_of(await running.ask("GET", path))
        assert status == 500
        assert "'unreadable' cannot be read: Expecting value: line 1" in message


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("logo-64x64.png", "image/png", b"\x89PNG"),
        ("logo-svg.svg", "image/svg+xml", b"<svg/>"),
        ("sub/file.bin", "application/octet-stream", b"\0\1"),
        ("sub/../logo-svg.svg", "image/svg+xml", b"<svg/>"),
    ],
)
async def test_resources(running: Any, path: str, kind: str, body: bytes) -> None:
    reply = await running.ask("GET", f"/kernelspecs/fake/{path}")
    assert (reply.code, reply.headers["Content-Type"], reply.body) == (200, kind, body)
    assert "sandbox" in reply.headers["Content-Security-Policy"]
    head = await running.ask("HEAD", f"/kernelspecs/fake/{path}")
    assert (head.code, head.body, head.headers["Content-Length"]) == (200, b"", str(len(body)))


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "sub",
        "../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "leads-out",
        "kernel.js%00.png",
        "a" * 5000,
    ],
)
async def test_resources_outside_the_directory_are_not_found(
    running: Any, error_of: Any, path: str
) -> None:
    reply = await running.ask("GET", f"/kernelspecs/fake/{path}")
    assert error_of(reply)[0] == 404


def test_a_kernelspec_may_be_a_link_itself(tmp_path: Path) -> None:
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert find_resource(str(link), "kernel.js") == tmp_path / "kernel.js"
