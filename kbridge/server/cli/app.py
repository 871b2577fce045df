"""`KbridgeApp`: the settings of the server. They become a `ServerConfig` at the start."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

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
from kbridge.kernels.registry.registry import secrets_of
from kbridge.private import prepare_directory
from kbridge.server import setting_checks
from kbridge.server.cli import command_line, environment, gateway_settings, hub_settings
from kbridge.server.cli.cluster_settings import ClusterSettings
from kbridge.server.cli.configuration import given_token, server_config
from kbridge.server.cli.monitoring_settings import MonitoringSettings
from kbridge.server.cli.options import CheckedApp, nearest
from kbridge.server.config import ServerConfig
from kbridge.server.http.request_head import DEFAULT_COUNT
from kbridge.server.safe_log import SafeFormatter, hide

__all__ = ["KbridgeApp"]

_LOG_TEXT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
_CLASSES: list[Any] = [BridgeKernelManager, ZMQChannelsWebsocketConnection]


class KbridgeApp(
    setting_checks.Checks,
    MonitoringSettings,
    ClusterSettings,
    hub_settings.HubSettings,
    CheckedApp,
):
    """Serve Jupyter kernels to websocket clients."""

    name = "kbridge"
    version = __version__
    description = """Serve Jupyter kernels over HTTP and websockets.

    Starts kernels on request and carries messages between them and any number of browsers
    and programs. Speaks the REST and websocket protocols of Jupyter Server and of the
    Jupyter Kernel Gateway, and reads the gateway's KG_* environment variables.
    """
    examples = command_line.EXAMPLES
    aliases = command_line.ALIASES
    flags = command_line.FLAGS
    subcommands = command_line.SUBCOMMANDS
    classes = _CLASSES
    _log_formatter_cls = SafeFormatter
    takes_arguments = False

    ip = Unicode(
        "127.0.0.1", help="Address to listen on; `*` or an empty string for all addresses. (KG_IP)"
    ).tag(config=True)
    port = Integer(
        8888, min=0, max=65535, help="Port to listen on; 0 for any free port. (KG_PORT)"
    ).tag(config=True)
    port_retries = Integer(
        50,
        min=0,
        help="""Number of ports to try after `port` if it is in use. (KG_PORT_RETRIES)""",
    ).tag(config=True)
    sock = Unicode("", help="Path of a unix socket to listen on instead of a port.").tag(
        config=True
    )
    sock_mode = Unicode("0600", help="Permissions of the unix socket, in octal.").tag(config=True)
    base_url = Unicode(
        "/",
        help="Path in front of every route; percent-encoding is optional. (KG_BASE_URL)",
    ).tag(config=True)
    token = Unicode(
        help="""Secret that clients must send: in the header `Authorization: token ...` or `Bearer
        ...`, in the query `?token=`, or in the cookie that the login page sets. An empty token
        turns authentication off. White space around the token is removed. (KG_AUTH_TOKEN)

        By default the value of JUPYTER_TOKEN, or the content of the file that JUPYTER_TOKEN_FILE
        names, or a random token. A random token is printed at the start and used again at the
        next start on the same address."""
    ).tag(config=True)
    cookie_secret = Bytes(
        help="""Key that signs the login cookie. By default a random key, which is used again at
        the next start on the same address."""
    ).tag(config=True)
    certfile = Unicode(
        "",
        help="""PEM file with the server's certificate. With it, the server uses https.
        (KG_CERTFILE)""",
    ).tag(config=True)
    keyfile = Unicode(
        "",
        help="""PEM file with the certificate's private key, if it is not in `certfile`.
        (KG_KEYFILE)""",
    ).tag(config=True)
    client_ca = Unicode(
        "",
        help="""PEM file with a certificate authority. Clients must show a certificate that it
        has signed. (KG_CLIENT_CA)""",
    ).tag(config=True)
    ssl_version = Integer(
        0,
        help="""0 for TLS 1.2 or later, or the number of one of Python's `ssl.PROTOCOL_*`
        constants for exactly that version; 5 is TLS 1.2. (KG_SSL_VERSION)""",
    ).tag(config=True)
    allow_origin = Unicode(
        "",
        help="""Foreign origins (`https://host:port`, separated by commas) whose pages may use
        this server, including websockets; `*` for all origins. Also sent in the header
        Access-Control-Allow-Origin. (KG_ALLOW_ORIGIN)""",
    ).tag(config=True)
    allow_origin_pat = Unicode(
        "",
        help="""Regular expression for more foreign origins, see `allow_origin`. It must match
        the whole origin.""",
    ).tag(config=True)
    allow_credentials = Unicode(
        "",
        help="""Value of the header Access-Control-Allow-Credentials; not sent if empty.
        (KG_ALLOW_CREDENTIALS)""",
    ).tag(config=True)
    allow_headers = Unicode(
        "",
        help="""Value of the header Access-Control-Allow-Headers. If empty, it is sent only in
        replies to preflight requests, with the headers that Jupyter's frontends need.
        (KG_ALLOW_HEADERS)""",
    ).tag(config=True)
    allow_methods = Unicode(
        "",
        help="""Value of the header Access-Control-Allow-Methods. If empty, it is sent only in
        replies to preflight requests. (KG_ALLOW_METHODS)""",
    ).tag(config=True)
    expose_headers = Unicode(
        "",
        help="""Value of the header Access-Control-Expose-Headers; not sent if empty.
        (KG_EXPOSE_HEADERS)""",
    ).tag(config=True)
    max_age = Unicode(
        "",
        help="""Value of the header Access-Control-Max-Age, in seconds; not sent if empty.
        (KG_MAX_AGE)""",
    ).tag(config=True)
    allow_remote_access = Bool(
        help="""Serve requests whose Host header does not name this machine. By default True only
        if `ip` is not a loopback address, or users come from JupyterHub. False protects a local
        server against DNS rebinding."""
    ).tag(config=True)
    local_hostnames = List(
        Unicode(),
        ["localhost"],
        help="""Host names that count as this machine, in addition to loopback addresses and
        `ip`.""",
    ).tag(config=True)
    trust_xheaders = Bool(
        False,
        help="""Trust the headers X-Real-Ip, X-Forwarded-For and X-Forwarded-Proto. Set this only
        behind a proxy that sets them. (KG_TRUST_XHEADERS)""",
    ).tag(config=True)
    list_kernels = Bool(
        True,
        help="""Let clients list kernels and sessions, as in Jupyter Server. (The kernel gateway
        allows it only if KG_LIST_KERNELS is true; that variable also sets this.)""",
    ).tag(config=True)
    ws_ping_interval = Float(
        30.0,
        min=0.0,
        help="""Seconds between pings of a websocket, and seconds that a client has to answer a
        ping; 0 for no pings. (KG_WS_PING_INTERVAL_SECS)""",
    ).tag(config=True)
    websocket_max_message_size = Integer(
        100 << 20, min=1, help="Maximum size of one message from a client, in bytes."
    ).tag(config=True)
    max_body_size = Integer(
        16 << 20, min=1, help="Maximum size of the body of a REST request, in bytes."
    ).tag(config=True)
    max_unauthenticated_connections = Integer(
        512,
        min=1,
        help="""Maximum number of open HTTP connections whose clients have not sent the token.
        Beyond it, the oldest of them is closed. Websockets and authenticated connections are not
        counted and not closed.""",
    ).tag(config=True)
    request_timeout = Float(
        30.0,
        min=0.1,
        help="""Seconds that an unauthenticated client has from connecting to the end of its
        request, including TLS, and the same time for reading the reply.""",
    ).tag(config=True)
    keep_alive_timeout = Float(
        300.0,
        min=0.1,
        help="""Seconds that an authenticated client has to send its whole next request, or to
        read a reply, before its connection is closed. Websockets are not affected.""",
    ).tag(config=True)
    max_header_size = Integer(
        64 << 10,
        min=1024,
        help="Maximum size of a request's first line and headers together, in bytes.",
    ).tag(config=True)
    max_header_count = Integer(
        DEFAULT_COUNT,
        min=16,
        help="""Maximum number of headers, of cookies, and of parameters in the URL of a request.
        A request with more is refused with status 431 or 414 before it is parsed.""",
    ).tag(config=True)
    min_open_files_limit = Integer(
        65536,
        min=0,
        help="""Raise the process's soft limit of file descriptors to this number at the start,
        as far as the hard limit allows. Kernels inherit the limit. 0 leaves it unchanged.""",
    ).tag(config=True)
    registry_url = Unicode(
        help="""The registry of kernels, from which the next server on the same address adopts
        kernels that are still running: the path of an SQLite file, or any SQLAlchemy URL
        (`postgresql+psycopg://...`, whose driver must be installed). With `none` or an empty
        value there is no registry, and kernels end with the server. By default the file
        kbridge-registry.sqlite in Jupyter's runtime directory."""
    ).tag(config=True)
    shutdown_kernels_on_exit = Bool(
        True,
        help="""True: kernels end when this server is stopped (SIGTERM, Ctrl-C, `kbridge stop`).
        False: kernels keep running, and the next server on the same address adopts them. After a
        crash of the server that happens in any case.""",
    ).tag(config=True)
    use_uvloop = Bool(
        True,
        help="""True: the server uses the event loop of uvloop, which needs less CPU, where it is
        installed (`pip install '.[speed]'` in a clone; Linux and macOS). False: always that of
        asyncio.""",
    ).tag(config=True)
    log_format = Unicode(
        "text",
        help="""Format of the log lines: `text`; `json` for one JSON object a line, with the kernel,
        the session, the client and the duration where they are known; or a template for Python's
        `logging.Formatter`.""",
    ).tag(config=True)

    token_is_random = Bool(False)
    cookie_secret_is_random = Bool(False)

    @default("token")
    def _default_token(self) -> str:
        if (token := given_token(os.environ)) is not None:
            return token
        self.token_is_random = True
        return secrets.token_hex(24)

    @default("runtime_dir")
    def _default_runtime_dir(self) -> str:
        return jupyter_runtime_dir()  # `initialize` creates it and reports errors

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

        if self.jupyterhub:  # its proxy passes on the name that browsers use
            return True
        try:
            return not ipaddress.ip_address(self.ip).is_loopback
        except ValueError:
            return self.ip not in self.local_hostnames

    @observe("access_log")
    def _access_log_changed(self, _change: Any) -> None:
        self._configure_logging()

    def generate_config_file(self, classes: Any = None) -> str:
        """Return a config file with all settings of kbridge and their defaults."""
        del classes
        from kbridge.server.reference import config_page

        return config_page()

    def write_default_config(self) -> None:
        """Write the config file, or exit with an error message."""
        try:
            super().write_default_config()
        except OSError as error:
            self.log.error(
                "Cannot write the config file: %s. Set the environment variable"
                " JUPYTER_CONFIG_DIR to a directory that you can write to.",
                error,
            )
            self.exit(1)

    def get_default_logging_config(self) -> dict[str, Any]:
        """Return the default logging configuration; `logging_config` is merged into it."""
        config: dict[str, Any] = super().get_default_logging_config()
        console = config["formatters"]["console"]
        if self.log_format == "json":
            console["class"] = "kbridge.server.json_log.JsonFormatter"
        if self.log_format in ("json", "text"):
            console["format"] = _LOG_TEXT
        if "loggers" in config:  # not under pythonw, which has no terminal
            # Tornado's messages can be caused by any client.
            flood = {"()": "kbridge.server.safe_log.FloodFilter", "prefix": "tornado."}
            config["filters"] = {"flood": flood}
            config["handlers"]["console"]["filters"] = ["flood"]
            for name in ("kbridge", "tornado", "asyncio"):
                config["loggers"][name] = {
                    "level": "DEBUG",
                    "handlers": ["console"],
                    "propagate": False,
                }
            level = "NOTSET" if self.access_log else "CRITICAL"
            config["loggers"]["tornado.access"] = {"level": level}
            # Warnings of other libraries also pass kbridge's formatter.
            config["root"] = {"level": "WARNING", "handlers": ["console"]}
        return config

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Read the command line; translate the kernel gateway's settings."""
        super().parse_command_line(argv)
        self.cli_config = gateway_settings.translate(self.cli_config)

    def update_config(self, config: Config) -> None:
        """Add settings from one source, with kbridge's names or the kernel gateway's."""
        super().update_config(gateway_settings.translate(config, shared=self.reads_shared))

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Read variables first, so that config files override them."""
        self.update_config(Config({"KbridgeApp": hub_settings.read(os.environ)}))
        config, unknown = gateway_settings.read(os.environ)
        self.update_config(Config(config))
        for name in unknown:
            near = gateway_settings.nearest_variable(name)
            self.log.warning(
                "kbridge ignores the environment variable %s%s; see docs/settings.md", name, near
            )
        own, misspelled = environment.read(os.environ, (KbridgeApp, *_CLASSES))
        self.update_config(Config(own))
        for name, near in misspelled.items():
            self.log.warning(
                "kbridge ignores the environment variable %s (did you mean %s?)", name, near
            )
        super().load_config_file(suppress_errors)

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the settings, and keep the secrets among them out of the log."""
        super().initialize(argv)
        if self._dispatching:
            return
        if self.extra_args and not self.takes_arguments:
            first = self.extra_args[0]
            near = nearest(first, {name: f"kbridge {name}" for name in self.subcommands})
            self.log.error(
                "kbridge does not accept the argument %r%s; see kbridge --help", first, near
            )
            self.exit(2)
        self._prepare_runtime_dir()
        hide(self.token)
        hide(self.metrics_token)
        hide(os.environ.get("JUPYTERHUB_API_TOKEN", ""))
        for secret in secrets_of(self.registry_url):
            hide(secret)

    def _prepare_runtime_dir(self) -> None:
        """Create the runtime directory; exit with an error message if it cannot be used."""
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

    def configuration(self) -> ServerConfig:
        """Return the settings as a frozen configuration.

        Raises
        ------
        traitlets.TraitError
            If a default that is computed now is not valid.
        """
        return server_config(self)

    def attached_ids(self) -> list[str]:
        """Return the ids of the kernels that `prepare` attaches: none."""
        return []

    async def prepare(self, kernels: BridgeKernelManager) -> None:
        """Check the kernelspecs and directories that settings name, before clients are served.

        Raises
        ------
        KbridgeError
            If a setting names a kernelspec or a directory that does not exist.
        """
        from kbridge.kernels.startup_checks import check_settings

        await check_settings(kernels)

    def listening(self, url: str) -> None:
        """Act once clients are served at `url`; this class does nothing."""

    def start(self) -> None:
        """Run the server until a signal arrives; after a restart, in the next program."""
        super().start()
        from kbridge.server.cli.event_loop import run
        from kbridge.server.cli.serve import serve
        from kbridge.server.restart import start_again

        try:
            again = run(serve(self.configuration(), self, self.log), use_uvloop=self.use_uvloop)
        except (KbridgeError, TraitError) as error:  # other classes read their traits only now
            self.log.critical("%s", error)
            sys.exit(1)
        if again:
            start_again(self.log)
