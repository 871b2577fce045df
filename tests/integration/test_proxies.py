"""A kernel behind the real nginx, HAProxy and Traefik, with the files of examples/deploy."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psutil
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.conftest import ServerFactory
from tests.support.client import KernelClient, dial
from tests.support.require import require
from tests.support.server import TOKEN, Reply, Server, free_port
from tests.support.waiting import TIMEOUT, eventually, until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
PAGE = (ROOT / "docs" / "proxy.md").read_text()
NAME = "kernels.example.org"
BASE = "/kernels"
UNLIMITED = "--ZMQChannelsWebsocketConnection.limit_rate=False"
MB = 1 << 20


class Certificate(NamedTuple):
    """A self-signed certificate for the name in the example files."""

    cert: Path
    key: Path
    both: Path

    def context(self) -> ssl.SSLContext:
        """Return the settings of a client that trusts this certificate only."""
        return ssl.create_default_context(cafile=str(self.cert))


class Proxy(NamedTuple):
    """A proxy that runs."""

    name: str
    port: int
    home: Path
    certificate: Certificate
    process: subprocess.Popen[bytes]

    @property
    def origin(self) -> str:
        return f"https://{NAME}:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        address: str = "127.0.0.1",
    ) -> Reply:
        """Send a request over TLS from an address of this machine."""
        connection = HTTPSConnection(NAME, self.port, timeout=TIMEOUT)
        plain = socket.create_connection(
            ("127.0.0.1", self.port), TIMEOUT, source_address=(address, 0)
        )
        connection.sock = self.certificate.context().wrap_socket(plain, server_hostname=NAME)
        try:
            connection.request(method, BASE + path, body, headers or {})
            response = connection.getresponse()
            # HAProxy writes the names of headers in lower case.
            headers_sent = {name.title(): value for name, value in response.getheaders()}
            return Reply(response.status, headers_sent, response.read())
        finally:
            connection.close()

    def attach(
        self, kernel: str, query: dict[str, str] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[KernelClient]:
        """Open a websocket as a page of this address does; `query` is added to the token."""
        words = urlencode({"token": TOKEN, **(query or {})})
        url = f"wss://{NAME}:{self.port}{BASE}/api/kernels/{kernel}/channels?{words}"
        usual = {
            "ssl": self.certificate.context(),
            "host": "127.0.0.1",
            "port": self.port,
            "origin": self.origin,
        }
        return dial(url, **{**usual, **options})

    def memory(self) -> int:
        """Return the resident memory of all processes of the proxy."""
        parent = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))


def changed(name: str, *changes: tuple[str, str]) -> str:
    """Return an example file with these replacements, each of which must apply."""
    text = (DEPLOY / name).read_text()
    for old, new in changes:
        assert old in text, f"{name}: {old}"
        text = text.replace(old, new)
    return text


def nginx(home: Path, port: int, upstream: str, certificate: Certificate, idle: str) -> list[str]:
    site = changed(
        "nginx.conf",
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/certs/kernels.example.org.pem", str(certificate.cert)),
        ("/etc/ssl/private/kernels.example.org.key", str(certificate.key)),
        ("127.0.0.1:8888", upstream),
        ("1h;", f"{idle};"),
        ("/var/log/nginx/access.log", f"{home}/access.log"),
    )
    temporary = "".join(
        f"{part}_temp_path {home}/{part};\n"
        for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = home / "nginx.conf"
    # Otherwise the worker of a root's nginx is another user, who cannot write there.
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(
        f"{user}daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;\n"
        f"events {{ }}\nhttp {{\naccess_log off;\n{temporary}{site}}}\n"
    )
    return [require("nginx"), "-c", str(config), "-p", str(home), "-e", str(home / "error.log")]


def haproxy(home: Path, port: int, upstream: str, certificate: Certificate, idle: str) -> list[str]:
    config = home / "haproxy.cfg"
    text = changed(
        "haproxy.cfg",
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/haproxy/kernels.example.org.pem", str(certificate.both)),
        ("127.0.0.1:8888", upstream),
        ("log /dev/log local0", "log stderr format raw local0"),
        # Only root can become another user.
        ("    user haproxy\n    group haproxy\n", ""),
        ("timeout tunnel 1h", f"timeout tunnel {idle}"),
    )
    config.write_text(text)
    return [require("haproxy"), "-db", "-f", str(config)]


def traefik(home: Path, port: int, upstream: str, certificate: Certificate, idle: str) -> list[str]:
    rules = home / "kbridge.yml"
    text = changed(
        "traefik-kbridge.yml",
        ("/etc/traefik/kernels.example.org.pem", str(certificate.cert)),
        ("/etc/traefik/kernels.example.org.key", str(certificate.key)),
        ("127.0.0.1:8888", upstream),
    )
    rules.write_text(text)
    config = home / "traefik.yml"
    config.write_text(
        changed(
            "traefik.yml",
            ('":443"', f'"127.0.0.1:{port}"'),
            ("/etc/traefik/kbridge.yml", str(rules)),
        )
    )
    return [require("traefik"), f"--configFile={config}"]


COMMANDS = {"nginx": nginx, "haproxy": haproxy, "traefik": traefik}


@contextmanager
def running(
    name: str, home: Path, upstream: int, certificate: Certificate, idle: str = "1h"
) -> Iterator[Proxy]:
    """Run a proxy in front of a port."""
    home.mkdir()
    port = free_port()
    command = COMMANDS[name](home, port, f"127.0.0.1:{upstream}", certificate, idle)
    with launched(name, command, home, port, certificate) as proxy:
        yield proxy


@contextmanager
def launched(
    name: str, command: list[str], home: Path, port: int, certificate: Certificate
) -> Iterator[Proxy]:
    """Run a proxy until the end of the context."""
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        proxy = Proxy(name, port, home, certificate, process)
        eventually(lambda: passes(proxy), f"{name} answers, see {home}/log")
        yield proxy
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@asynccontextmanager
async def proxied(*args: Any) -> AsyncIterator[Proxy]:
    """Run a proxy, as `running` does, and leave the event loop to others while it waits."""
    starting = running(*args)
    proxy = await asyncio.to_thread(starting.__enter__)
    try:
        yield proxy
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


def passes(proxy: Proxy) -> bool:
    """True once the proxy listens and has found the server behind it."""
    assert proxy.process.poll() is None, (proxy.home / "log").read_text()
    try:
        return proxy.request("GET", "/healthz").status == 200
    except (OSError, ssl.SSLError):
        return False


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    home = tmp_path_factory.mktemp("certificate")
    made = Certificate(home / "cert.pem", home / "key.pem", home / "both.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", str(made.key), "-out", str(made.cert)),
        ],
        check=True,
        capture_output=True,
    )
    made.both.write_text(made.cert.read_text() + made.key.read_text())
    return made


def options() -> list[str]:
    """Return the options that the page gives the server; the test chooses the port."""
    [command] = re.findall(r"^```\n(kbridge --base-url.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))[1:]
    return [word for word in words if not word.startswith("--port")]


@pytest.fixture(scope="module", params=sorted(COMMANDS))
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificate: Certificate,
) -> Iterator[tuple[Proxy, Server]]:
    """Each proxy in turn, in front of its own server."""
    require(request.param, "ipykernel")
    home = tmp_path_factory.mktemp(request.param)
    server = Server(tmp_path_factory.mktemp("server"), *options(), UNLIMITED)
    try:
        server.start()
        with running(request.param, home / "proxy", server.port, certificate) as found:
            yield found, server
    finally:
        server.kill()


def start_kernel(server: Server) -> str:
    reply = server.request("POST", f"{BASE}/api/kernels")
    assert reply.status == 201, reply
    return str(reply.json()["id"])


async def test_a_page_uses_a_kernel(proxy: tuple[Proxy, Server]) -> None:
    front, server = proxy
    kernel = await asyncio.to_thread(start_kernel, server)
    async with front.attach(kernel) as one, front.attach(kernel, dialect="legacy") as two:
        padding = "x" * (3 * MB)  # more than a proxy's usual limit of a request
        assert (await one.execute(f"# {padding}\nprint(6 * 7)")).text() == "42\n"
        assert (await two.execute("print('again')")).text() == "again\n"
    with pytest.raises(InvalidStatus, match="403"):
        async with front.attach(kernel, origin="https://elsewhere.example.org"):
            pass


def test_the_base_url_and_large_requests(proxy: tuple[Proxy, Server]) -> None:
    front, _ = proxy
    page = front.request("GET", "/", headers={"Accept": "text/html"})
    assert page.status == 302
    assert page.headers["Location"].startswith(f"{BASE}/login")
    headers = {"Authorization": f"token {TOKEN}"}
    reply = front.request("POST", "/api/kernels", b"x" * (3 * MB), headers)
    assert reply.status == 400, reply
    assert "JSON" in reply.json()["message"]


FORGED = {
    "X-Real-Ip": "192.0.2.9",
    "X-Forwarded-For": "192.0.2.9",
    "X-Forwarded-Proto": "http",
    "X-Scheme": "http",
}


def test_the_server_knows_address_and_scheme_of_clients(proxy: tuple[Proxy, Server]) -> None:
    """A client sends false headers, which the proxy must replace."""
    front, server = proxy
    body = f"password={TOKEN}".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": front.origin}
    reply = front.request("POST", "/login", body, headers | FORGED)
    assert reply.status == 302, reply
    assert "secure" in reply.headers["Set-Cookie"].lower()
    front.request("DELETE", "/api/kernels/of-nobody", None, FORGED, address="127.0.0.9")
    eventually(lambda: "of-nobody" in server.log.read_text(), "the request is in the log")
    [line] = [line for line in server.log.read_text().splitlines() if "of-nobody" in line]
    assert "(127.0.0.9)" in line


async def test_the_token_is_not_in_the_access_log(proxy: tuple[Proxy, Server]) -> None:
    front, server = proxy
    kernel = await asyncio.to_thread(start_kernel, server)
    async with front.attach(kernel) as client:  # the URL contains the token
        await client.execute("pass")
    access = front.home / ("access.log" if front.name == "nginx" else "log")
    if front.name != "traefik":  # its access log is off
        path = f"{BASE}/api/kernels/{kernel}/channels"
        await asyncio.to_thread(eventually, lambda: path in access.read_text(), "a line is logged")
    assert TOKEN not in access.read_text()


async def test_unread_output_stays_in_the_journal(proxy: tuple[Proxy, Server]) -> None:
    """While a client does not read, the proxy holds little of 64 MB, in memory and on disk."""
    front, server = proxy
    kernel = await asyncio.to_thread(start_kernel, server)
    async with front.attach(kernel) as client:
        await client.execute("pass")
        before = front.memory()
        code = f"for n in range(64): print(n, 'x' * {MB}, flush=True)"
        msg_id = await client.start(code)

        def has_ended() -> bool:
            found = server.request("GET", f"{BASE}/api/kernels/{kernel}/executions/{msg_id}")
            return found.status == 200 and found.json()["state"] not in {"queued", "running"}

        await asyncio.to_thread(eventually, has_ended, "the cell ends while nobody reads")
        assert front.memory() - before < 32 * MB
        files = [path for path in front.home.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < MB
        done = await client.finish(msg_id)
    assert len(done.text()) == sum(len(f"{n} \n") + MB for n in range(64))


@asynccontextmanager
async def event_source(go_on: asyncio.Event) -> AsyncIterator[int]:
    """Serve a reply whose second part follows after an event; yield the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/healthz" in head.split(b"\r\n", 1)[0]:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Connection: close\r\n\r\ndata: one\n\n")
            await writer.drain()
            await go_on.wait()
            writer.write(b"data: two\n\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", free_port())
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("name", sorted(COMMANDS))
async def test_events_are_not_held_back(
    name: str, tmp_path: Path, certificate: Certificate
) -> None:
    require(name)
    go_on = asyncio.Event()
    async with (
        event_source(go_on) as upstream,
        proxied(name, tmp_path / name, upstream, certificate) as front,
    ):
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", front.port, ssl=certificate.context(), server_hostname=NAME
                )
                writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                await reader.readuntil(b"data: one\n\n")  # the second part waits for this
                go_on.set()
                await reader.readuntil(b"data: two\n\n")
                writer.close()
        finally:
            go_on.set()


class Pinged(ClientConnection):
    """A connection that counts the pings of its server."""

    pings = 0

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1
        super().process_event(event)


async def stays_open(front: Proxy, kernel: str, pings: int) -> bool:
    """True if an idle websocket is open until that many pings have arrived."""
    async with front.attach(kernel, create_connection=Pinged) as client:
        pinged = client.ws
        assert isinstance(pinged, Pinged)
        await client.execute("pass")
        ended = asyncio.create_task(pinged.wait_closed())
        await until(lambda: ended.done() or pinged.pings >= pings, "the server pings")
        return not ended.done() or bool(ended.cancel())


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
async def test_pings_keep_an_idle_websocket_open(
    name: str, new_server: ServerFactory, tmp_path: Path, certificate: Certificate
) -> None:
    """With timeouts of 6 s; the files have an hour. Traefik ends no idle websockets."""
    require(name)
    server = await asyncio.to_thread(new_server, *options(), "--KbridgeApp.ws_ping_interval=2")
    async with proxied(name, tmp_path / name, server.port, certificate, "6s") as front:
        kernel = await asyncio.to_thread(start_kernel, server)
        # A machine that stands still for seconds delays a ping.
        tries = [await stays_open(front, kernel, pings=5)]
        while not tries[-1] and len(tries) < 5:
            tries.append(await stays_open(front, kernel, pings=5))
        assert tries[-1], tries


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
async def test_without_pings_the_proxy_ends_an_idle_websocket(
    name: str, new_server: ServerFactory, tmp_path: Path, certificate: Certificate
) -> None:
    require(name)
    server = await asyncio.to_thread(new_server, *options(), "--KbridgeApp.ws_ping_interval=0")
    async with proxied(name, tmp_path / name, server.port, certificate, "1s") as front:
        kernel = await asyncio.to_thread(start_kernel, server)
        async with front.attach(kernel) as client:
            await asyncio.wait_for(client.ws.wait_closed(), TIMEOUT)
            with pytest.raises(ConnectionClosed):
                await client.ws.ping()


def test_the_timeouts_of_the_files_are_longer_than_the_pings() -> None:
    from kbridge.server.cli.app import KbridgeApp

    seconds = 3600
    assert KbridgeApp.class_traits()["ws_ping_interval"].default() * 10 < seconds
    for line in ("proxy_read_timeout 1h;", "proxy_send_timeout 1h;"):
        assert line in (DEPLOY / "nginx.conf").read_text()
    assert "timeout tunnel 1h" in (DEPLOY / "haproxy.cfg").read_text()
