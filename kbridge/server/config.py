"""The configuration of a server, as frozen values.

`kbridge.server.cli.app.KbridgeApp` produces it from the command line, config files and environment
variables. Everything below the command line takes this and does not know the application object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from traitlets.config import Configurable

from kbridge.connection.audit import AuditCode
from kbridge.server.auth.authenticator import Cors
from kbridge.server.auth.jupyterhub import HubConfig
from kbridge.server.auth.users import Resolver
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.listen import TlsFiles
from kbridge.server.http.request_head import HeadLimits

__all__ = [
    "AuditConfig",
    "AuthConfig",
    "ClusterConfig",
    "HttpConfig",
    "ListenConfig",
    "MetricsConfig",
    "ServerConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """The address of a server.

    Attributes
    ----------
    ip : str
        An address or host name; empty for all addresses.
    port : int
        0 for any free port.
    port_retries : int
        The number of ports above `port` to try while they are in use.
    sock : str
        Path of a unix socket to listen on instead of a port; empty for none.
    sock_mode : int
        Its permissions.
    tls : TlsFiles
    """

    ip: str = "127.0.0.1"
    port: int = 8888
    port_retries: int = 50
    sock: str = ""
    sock_mode: int = 0o600
    tls: TlsFiles = field(default_factory=TlsFiles)

    def address(self, port: int) -> str:
        """Return the name of the address with this port, or of the unix socket."""
        return self.sock or f"{self.ip or '*'}:{port}"

    def url(self, port: int, base_url: str) -> str:
        """Return the server's URL, without a token."""
        scheme = "https" if self.tls.certfile else "http"
        if self.sock:
            return f"{scheme}+unix://{quote(self.sock, safe='')}{base_url}"
        host = self.ip if self.ip not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
        if ":" in host:
            host = f"[{host}]"
        return f"{scheme}://{host}:{port}{base_url}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Authentication, and the hosts and origins that are allowed.

    Attributes
    ----------
    token : str
        Empty: no authentication.
    cookie_secret : bytes
        Signs the login cookie.
    token_is_random, cookie_secret_is_random : bool
        True if the operator did not set it; then the value of the last server on the same address
        is used, if there is one.
    allow_remote_access : bool
        Serve requests whose Host header does not name this machine.
    local_hostnames : tuple of str
        Host names that count as this machine.
    resolver : Resolver or None
        Asks another program than JupyterHub for the users of tokens; None without one.
    allow_origin, allow_origin_pat : str
        Foreign origins whose pages may use the server: a list with commas, a regular expression.
    cors : Cors
    """

    token: str = field(default="", repr=False)
    cookie_secret: bytes = field(default=b"", repr=False)
    token_is_random: bool = False
    cookie_secret_is_random: bool = False
    resolver: Resolver | None = None
    allow_remote_access: bool = False
    local_hostnames: tuple[str, ...] = ("localhost",)
    allow_origin: str = ""
    allow_origin_pat: str = ""
    cors: Cors = field(default_factory=Cors)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Limits of HTTP and websocket connections.

    Attributes
    ----------
    connections : ConnectionLimits
    heads : HeadLimits
    max_body_size, websocket_max_message_size : int
        Bytes.
    ws_ping_interval : float
        Seconds between pings of a websocket; 0 for none.
    trust_xheaders : bool
        Trust the headers of a proxy, such as X-Forwarded-For.
    min_open_files_limit : int
        The number of file descriptors to raise the process's limit to.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    heads: HeadLimits = field(default_factory=HeadLimits)
    max_body_size: int = 16 << 20
    websocket_max_message_size: int = 100 << 20
    ws_ping_interval: float = 30.0
    trust_xheaders: bool = False
    min_open_files_limit: int = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Access to the metrics, and traces.

    Attributes
    ----------
    token : str
        Opens only the metrics; empty for none.
    ip : str
        The address of the listener for metrics; empty for all addresses.
    port : int
        Its port; 0 for no such listener.
    per_kernel : bool
        True to export the ids of kernels.
    tracing : bool
        True to send executions as OpenTelemetry traces.
    """

    token: str = field(default="", repr=False)
    ip: str = "127.0.0.1"
    port: int = 0
    per_kernel: bool = False
    tracing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The audit log.

    Attributes
    ----------
    path : str
        The file; empty for none.
    code : AuditCode
        The form in which its lines have the code.
    """

    path: str = ""
    code: AuditCode = AuditCode.HASH


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """A cluster, and this server in it.

    Attributes
    ----------
    name : str
        The name of the cluster; empty for none.
    advertise_url : str
        The URL for other replicas, without the path; empty for the address that the server listens
        on.
    followers : int
        The number of other replicas that follow each kernel.
    lease_seconds : float
        The duration of a lease.
    drain_seconds : float
        The time over which websockets are closed at the end.
    """

    name: str = ""
    advertise_url: str = ""
    followers: int = 1
    lease_seconds: float = 5.0
    drain_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of one server.

    Attributes
    ----------
    listen : ListenConfig
    auth : AuthConfig
    http : HttpConfig
    metrics : MetricsConfig
    audit : AuditConfig
    cluster : ClusterConfig
    jupyterhub : HubConfig or None
        JupyterHub, if users come from there.
    base_url : str
        The path in front of every route, with a slash at both ends.
    list_kernels : bool
        True if clients may list kernels and sessions.
    page : bool
        True if browsers receive the live page and the console.
    runtime_dir : Path
    registry_url : str
        A path or URL; empty or `none` for no registry.
    shutdown_kernels_on_exit : bool
        False: kernels keep running when the server stops.
    answer_yes : bool
        Do not ask questions on the terminal.
    traits : Configurable
        The parent of traitlets objects, from which they take their settings.
    """

    listen: ListenConfig
    auth: AuthConfig
    http: HttpConfig
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    jupyterhub: HubConfig | None = None
    base_url: str = "/"
    list_kernels: bool = True
    page: bool = True
    runtime_dir: Path
    registry_url: str = field(default="", repr=False)  # it may contain a password
    shutdown_kernels_on_exit: bool = True
    answer_yes: bool = False
    traits: Configurable = field(repr=False)

    @property
    def address(self) -> str:
        """The address that the next server with the same settings has, too.

        It has the configured port, not the one that was free.
        """
        return f"{self.listen.address(self.listen.port)}{self.base_url}"
