"""`KbridgeApp`: the settings of the server, and how the command line names them.

What is done with them is in `wiring` (what is put together) and `lifecycle` (start and end).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from jupyter_core.application import base_aliases, base_flags
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import (
    Bool,
    Bytes,
    Float,
    Integer,
    List,
    TraitError,
    Unicode,
    default,
    observe,
)
from traitlets.config import Config, catch_config_error

from kbridge._version import __version__
from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import KbridgeError
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry import secrets_of
from kbridge.private import prepare_directory
from kbridge.server import checks, kg
from kbridge.server.checks import checked
from kbridge.server.logs import SafeFormatter, hide
from kbridge.server.options import CheckedApp

__all__ = ["KbridgeApp"]

_EXAMPLES = """\
kbridge                              # http://127.0.0.1:8888, with a token
kbridge --port 9999 --ip 0.0.0.0     # for other machines; see also --certfile
kbridge --pool python3=2             # two kernels wait, started ahead
kbridge --sock ~/kbridge.sock        # a unix socket that only you may open
kbridge --shutdown-kernels-on-exit=false  # kernels stay for the next start
kbridge --generate-config            # a config file with every setting explained
kbridge attach kernel-1234.json      # serve a kernel that somebody else started
kbridge list                         # the servers that run
kbridge stop 8888                    # stop one, and its kernels

jupyter server --gateway-url http://127.0.0.1:8888 --GatewayClient.auth_token=TOKEN
"""
_ALIASES: dict[str, Any] = {
    "log-level": base_aliases["log-level"],
    "config": base_aliases["config"],
    "ip": "KbridgeApp.ip",
    "port": "KbridgeApp.port",
    "port-retries": "KbridgeApp.port_retries",
    "sock": "KbridgeApp.sock",
    "base-url": "KbridgeApp.base_url",
    "token": "KbridgeApp.token",
    "certfile": "KbridgeApp.certfile",
    "keyfile": "KbridgeApp.keyfile",
    "client-ca": "KbridgeApp.client_ca",
    "ssl-version": "KbridgeApp.ssl_version",
    "allow-origin": "KbridgeApp.allow_origin",
    "root-dir": "BridgeKernelManager.root_dir",
    "max-kernels": "BridgeKernelManager.max_kernels",
    "default-kernel": "BridgeKernelManager.default_kernel_name",
    "pool": "BridgeKernelManager.pool",
    "kernel-ip": "BridgeKernelManager.kernel_ip",
    "transport": "BridgeKernelManager.transport",
    "transport-encryption": "BridgeKernelManager.transport_encryption",
    "attach-dir": "BridgeKernelManager.attach_dir",
    "registry-url": "KbridgeApp.registry_url",
    "shutdown-kernels-on-exit": "KbridgeApp.shutdown_kernels_on_exit",
    "seed-uri": "BridgeKernelManager.seed_uri",
    "cull-idle": "BridgeKernelManager.cull_idle_timeout",
}
_FLAGS: dict[str, Any] = {
    "debug": base_flags["debug"],
    "generate-config": base_flags["generate-config"],
    "y": base_flags["y"],
}
_CLASSES: list[Any] = [BridgeKernelManager, ZMQChannelsWebsocketConnection]
_SUBCOMMANDS: dict[str, Any] = {
    "attach": ("kbridge.server.attach.AttachApp", "Serve kernels that somebody else started."),
    "kernelgateway": (
        "kbridge.server.gateway.KernelGatewayApp",
        "Serve kernels under the options of `jupyter kernelgateway`.",
    ),
    "health": ("kbridge.server.health.HealthApp", "Check that running servers answer."),
    "list": ("kbridge.server.commands.ListApp", "List running servers."),
    "stop": ("kbridge.server.commands.StopApp", "Stop a running server, by port or socket."),
}


class KbridgeApp(checks.Checks, CheckedApp):
    """Serve Jupyter kernels to websocket clients."""

    name = "kbridge"
    version = __version__
    description = """Serve Jupyter kernels over HTTP and websockets.

    Starts kernels when clients ask for them and carries messages between them and any
    number of browsers and programs. Speaks the REST and websocket protocol of Jupyter
    Server and of the Jupyter Kernel Gateway, whose KG_* environment variables it reads.
    """
    examples = _EXAMPLES
    aliases = _ALIASES
    flags = _FLAGS
    subcommands = _SUBCOMMANDS
    classes = _CLASSES
    _log_formatter_cls = SafeFormatter
    takes_arguments = False

    ip = Unicode(
        "127.0.0.1", help="Address to listen on; `*` or empty for all of them. (KG_IP)"
    ).tag(config=True)
    port = Integer(8888, min=0, max=65535, help="Port to listen on; 0 for any. (KG_PORT)").tag(
        config=True
    )
    port_retries = Integer(
        50,
        min=0,
        help="How many ports after it to try while they are in use. (KG_PORT_RETRIES)",
    ).tag(config=True)
    sock = Unicode("", help="Path of a unix socket to listen on instead of a port.").tag(
        config=True
    )
    sock_mode = Unicode("0600", help="Permissions of the unix socket, octal.").tag(config=True)
    base_url = Unicode(
        "/",
        help="""Path below which everything is served, percent-encoded or as it is read.
        (KG_BASE_URL)""",
    ).tag(config=True)
    token = Unicode(
        help="""What a client must show: `Authorization: token ...` or `Bearer ...`, `?token=`,
        or the cookie that the page sets. Empty: no authentication. White space around it is left
        out. (KG_AUTH_TOKEN)

        By default the environment variable JUPYTER_TOKEN, or the content of the file named by
        JUPYTER_TOKEN_FILE, or else a random one, printed at the start and kept for the next start
        on the same address."""
    ).tag(config=True)
    cookie_secret = Bytes(
        help="""Key of the browser's cookie. By default random, and kept for the next start on the
        same address."""
    ).tag(config=True)
    certfile = Unicode("", help="PEM file of the certificate: serve https. (KG_CERTFILE)").tag(
        config=True
    )
    keyfile = Unicode(
        "", help="PEM file of its private key, if it is not in the same file. (KG_KEYFILE)"
    ).tag(config=True)
    client_ca = Unicode(
        "", help="PEM file of an authority; clients must show its certificate. (KG_CLIENT_CA)"
    ).tag(config=True)
    ssl_version = Integer(
        0,
        help="""0: TLS 1.2 or later. A number of Python's `ssl.PROTOCOL_*` for one version
        alone, as in 5 for TLS 1.2. (KG_SSL_VERSION)""",
    ).tag(config=True)
    allow_origin = Unicode(
        "",
        help="""Foreign origins (`https://host:port`, several with commas) whose pages may use
        this server, websockets included; `*` for all. Also sent as
        Access-Control-Allow-Origin. (KG_ALLOW_ORIGIN)""",
    ).tag(config=True)
    allow_origin_pat = Unicode(
        "", help="A regular expression for the same; it must match the whole origin."
    ).tag(config=True)
    allow_credentials = Unicode(
        "", help="Access-Control-Allow-Credentials; empty: not sent. (KG_ALLOW_CREDENTIALS)"
    ).tag(config=True)
    allow_headers = Unicode(
        "",
        help="""Access-Control-Allow-Headers; empty: sent in answers to preflights only, with
        what Jupyter's frontends need. (KG_ALLOW_HEADERS)""",
    ).tag(config=True)
    allow_methods = Unicode(
        "", help="Access-Control-Allow-Methods; empty: likewise. (KG_ALLOW_METHODS)"
    ).tag(config=True)
    expose_headers = Unicode(
        "", help="Access-Control-Expose-Headers; empty: not sent. (KG_EXPOSE_HEADERS)"
    ).tag(config=True)
    max_age = Unicode(
        "", help="Access-Control-Max-Age, in seconds; empty: not sent. (KG_MAX_AGE)"
    ).tag(config=True)
    allow_remote_access = Bool(
        help="""Serve requests whose Host header names no local host. By default on only if
        `ip` is not a loopback address: it guards a local server against DNS rebinding."""
    ).tag(config=True)
    local_hostnames = List(
        Unicode(),
        ["localhost"],
        help="Host names taken for local, besides loopback addresses and `ip`.",
    ).tag(config=True)
    trust_xheaders = Bool(
        False,
        help="""Believe X-Real-Ip, X-Forwarded-For and X-Forwarded-Proto: set it behind a proxy
        that sets them, nowhere else. (KG_TRUST_XHEADERS)""",
    ).tag(config=True)
    list_kernels = Bool(
        True,
        help="""Let clients list kernels and sessions, as Jupyter Server does. The kernel
        gateway does so only if told to: there, and here if it is set, KG_LIST_KERNELS
        decides.""",
    ).tag(config=True)
    ws_ping_interval = Float(
        30.0,
        min=0.0,
        help="""Seconds between pings of a websocket, and within which it must answer one;
        0: none. (KG_WS_PING_INTERVAL_SECS)""",
    ).tag(config=True)
    websocket_max_message_size = Integer(
        100 << 20, min=1, help="Bytes that one message of a client may have."
    ).tag(config=True)
    max_body_size = Integer(16 << 20, min=1, help="Bytes that a REST request may have.").tag(
        config=True
    )
    max_unauthenticated_connections = Integer(
        512,
        min=1,
        help="""HTTP connections that may be open at once whose clients have not shown the token.
        When one more comes, the oldest of them is closed. Websockets, and connections on which
        the token was shown, do not count and are not closed.""",
    ).tag(config=True)
    request_timeout = Float(
        30.0,
        min=0.1,
        help="""Seconds that a client which has not shown the token has: from connecting, TLS
        included, to the end of its request, and again for reading the answer.""",
    ).tag(config=True)
    keep_alive_timeout = Float(
        300.0,
        min=0.1,
        help="""Seconds that a client which has shown the token has to send its next request
        whole, or to read an answer. Its connection is closed after that; websockets are not.""",
    ).tag(config=True)
    max_header_size = Integer(
        64 << 10,
        min=1024,
        help="Bytes that the head of a request may have: its first line and headers.",
    ).tag(config=True)
    min_open_files_limit = Integer(
        65536,
        min=0,
        help="""Descriptors that the server may have open, as far as the system's hard limit
        allows: its soft limit is raised at the start. Kernels inherit it. 0 leaves it alone.""",
    ).tag(config=True)
    registry_url = Unicode(
        help="""Where it is written down which kernels run, so that those that outlive this server
        are served again by the next one on the same address: the path of an SQLite file, or any
        URL of SQLAlchemy's (`postgresql+psycopg://...`; its driver is to be installed). `none` or
        empty: nowhere; kernels then end with the server, however that ends.

        By default the file kbridge-registry.sqlite in Jupyter's runtime directory."""
    ).tag(config=True)
    shutdown_kernels_on_exit = Bool(
        True,
        help="""Whether kernels end with this server when it is stopped (SIGTERM, Ctrl-C, `kbridge
        stop`). False: they stay, and the next start on the same address serves them again, as it
        does in any case after a crash.""",
    ).tag(config=True)
    log_format = Unicode(
        "%(asctime)s %(levelname).1s %(name)s: %(message)s", help="The format of a log line."
    ).tag(config=True)

    token_is_random = Bool(False)
    cookie_secret_is_random = Bool(False)

    @default("token")
    def _default_token(self) -> str:
        file = os.environ.get("JUPYTER_TOKEN_FILE")
        if given := os.environ.get("JUPYTER_TOKEN"):
            return checked("the environment variable JUPYTER_TOKEN", checks.check_token, given)
        if file:
            try:
                given = Path(file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TraitError(f"JUPYTER_TOKEN_FILE cannot be read: {error}") from None
            if not given.strip():  # rather no server than one without authentication
                raise TraitError(f"JUPYTER_TOKEN_FILE names an empty file: {file}")
            return checked("the file of JUPYTER_TOKEN_FILE", checks.check_token, given)
        self.token_is_random = True
        return secrets.token_hex(24)

    @default("runtime_dir")
    def _default_runtime_dir(self) -> str:
        return jupyter_runtime_dir()  # created by `initialize`, which reports errors

    @observe("runtime_dir")
    def _runtime_dir_changed(self, change: Any) -> None:
        """Do not create the directory here, where an error would be a traceback."""

    @default("registry_url")
    def _default_registry_url(self) -> str:
        return str(Path(self.runtime_dir) / "kbridge-registry.sqlite")

    @default("cookie_secret")
    def _default_cookie_secret(self) -> bytes:
        self.cookie_secret_is_random = True
        return secrets.token_bytes(32)

    @default("allow_remote_access")
    def _default_allow_remote_access(self) -> bool:
        import ipaddress

        try:
            return not ipaddress.ip_address(self.ip).is_loopback
        except ValueError:
            return self.ip not in self.local_hostnames

    def generate_config_file(self, classes: Any = None) -> str:
        """Return a config file that shows the real defaults of our own settings."""
        del classes
        from kbridge.server.reference import config_page

        return config_page()

    def get_default_logging_config(self) -> dict[str, Any]:
        """Return what `logging_config` is merged into: the loggers of everything that logs here."""
        config: dict[str, Any] = super().get_default_logging_config()
        if "loggers" in config:  # not under pythonw, which has no terminal
            # Tornado speaks of what clients do.
            flood = {"()": "kbridge.server.logs.FloodFilter", "prefix": "tornado."}
            config["filters"] = {"flood": flood}
            config["handlers"]["console"]["filters"] = ["flood"]
            for name in ("kbridge", "tornado", "asyncio"):
                config["loggers"][name] = {
                    "level": "DEBUG",
                    "handlers": ["console"],
                    "propagate": False,
                }
            # Warnings of other libraries pass our formatter, too.
            config["root"] = {"level": "WARNING", "handlers": ["console"]}
        return config

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Read the command line; the kernel gateway's traits get their names here."""
        super().parse_command_line(argv)
        self.cli_config = kg.translate(self.cli_config)

    def update_config(self, config: Config) -> None:
        """Take settings from one source, under our names or the kernel gateway's."""
        super().update_config(kg.translate(config))

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Take the kernel gateway's variables first, so that config files go over them."""
        config, unknown = kg.read(os.environ)
        self.update_config(Config(config))
        for name in unknown:
            self.log.warning("%s has no meaning here; see docs/settings.md", name)
        super().load_config_file(suppress_errors)

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the settings, and see to it that the token stays out of the log."""
        super().initialize(argv)
        if self._dispatching:
            return
        if self.extra_args and not self.takes_arguments:
            self.log.error("kbridge takes no argument %r; see kbridge --help", self.extra_args[0])
            self.exit(2)
        self._prepare_runtime_dir()
        hide(self.token)
        for secret in secrets_of(self.registry_url):
            hide(secret)

    def _prepare_runtime_dir(self) -> None:
        """End the start with an error that names the setting if the directory cannot be used."""
        path = self.runtime_dir
        try:
            warning = prepare_directory(Path(path))
        except OSError as error:
            self.log.error(
                "The runtime directory %s cannot be used: %s. Set the environment variable"
                " JUPYTER_RUNTIME_DIR to a directory that only you can write to.",
                path,
                error.strerror or error,
            )
            self.exit(1)
        if warning:
            self.log.warning("%s", warning)

    async def prepare(self, kernels: BridgeKernelManager) -> None:
        """Do what is to be done before anybody is served: nothing here."""

    def listening(self, url: str) -> None:
        """Do what is to be done once clients are served at `url`: nothing here."""

    def start(self) -> None:
        """Serve until a signal comes."""
        super().start()
        from kbridge.server.lifecycle import serve

        try:
            asyncio.run(serve(self))
        except (KbridgeError, TraitError) as error:  # traits of other classes are read late
            self.log.critical("%s", error)
            sys.exit(1)
