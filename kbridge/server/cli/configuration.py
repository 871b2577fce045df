"""Turns the settings of `KbridgeApp` into a frozen `ServerConfig`.

Nothing here keeps the application, except as the parent of traitlets objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitlets import TraitError

from kbridge.connection.audit import AuditCode
from kbridge.server.auth.authenticator import Cors
from kbridge.server.cli.hub_settings import hub_config
from kbridge.server.config import (
    AuditConfig,
    AuthConfig,
    ClusterConfig,
    HttpConfig,
    ListenConfig,
    MetricsConfig,
    ServerConfig,
)
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.listen import TlsFiles
from kbridge.server.http.request_head import HeadLimits
from kbridge.server.setting_checks import check_token, checked

__all__ = ["given_token", "server_config"]


def given_token(environ: Mapping[str, str]) -> str | None:
    """Return the token that environment variables give; None if there are none.

    Parameters
    ----------
    environ : mapping
        JUPYTER_TOKEN is the token, JUPYTER_TOKEN_FILE the path of a file with it.

    Raises
    ------
    traitlets.TraitError
        If the token is not valid, or its file cannot be read.
    """
    if given := environ.get("JUPYTER_TOKEN"):
        return str(checked("the environment variable JUPYTER_TOKEN", check_token, given))
    file = environ.get("JUPYTER_TOKEN_FILE")
    if not file:
        return None
    try:
        given = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraitError(f"JUPYTER_TOKEN_FILE cannot be read: {error}") from None
    if not given.strip():  # an empty token would turn authentication off
        raise TraitError(f"JUPYTER_TOKEN_FILE names an empty file: {file}")
    return str(checked("the file of JUPYTER_TOKEN_FILE", check_token, given))


def server_config(app: Any) -> ServerConfig:
    """Return the settings of an application as a frozen configuration.

    Parameters
    ----------
    app : KbridgeApp

    Raises
    ------
    traitlets.TraitError
        If a default that is computed now is not valid.
    """
    # Computing a default sets the flag that says so: read both before the flags.
    token, cookie_secret = app.token, app.cookie_secret
    return ServerConfig(
        listen=ListenConfig(
            ip=app.ip,
            port=app.port,
            port_retries=app.port_retries,
            sock=app.sock,
            sock_mode=int(app.sock_mode, 8),
            tls=TlsFiles(app.certfile, app.keyfile, app.client_ca, app.ssl_version),
        ),
        auth=AuthConfig(
            token=token,
            cookie_secret=cookie_secret,
            token_is_random=app.token_is_random,
            cookie_secret_is_random=app.cookie_secret_is_random,
            allow_remote_access=app.allow_remote_access,
            local_hostnames=tuple(app.local_hostnames),
            allow_origin=app.allow_origin,
            allow_origin_pat=app.allow_origin_pat,
            cors=Cors(
                allow_credentials=app.allow_credentials,
                allow_headers=app.allow_headers,
                allow_methods=app.allow_methods,
                expose_headers=app.expose_headers,
                max_age=app.max_age,
            ),
        ),
        http=HttpConfig(
            connections=ConnectionLimits(
                app.max_unauthenticated_connections,
                app.request_timeout,
                app.keep_alive_timeout,
            ),
            heads=HeadLimits(app.max_header_size, app.max_header_count),
            max_body_size=app.max_body_size,
            websocket_max_message_size=app.websocket_max_message_size,
            ws_ping_interval=app.ws_ping_interval,
            trust_xheaders=app.trust_xheaders,
            min_open_files_limit=app.min_open_files_limit,
        ),
        metrics=MetricsConfig(
            token=app.metrics_token,
            ip=app.metrics_ip,
            port=app.metrics_port,
            per_kernel=app.metrics_per_kernel,
            tracing=app.tracing,
        ),
        audit=AuditConfig(path=app.audit_log, code=AuditCode(app.audit_code)),
        cluster=ClusterConfig(
            name=app.cluster,
            advertise_url=app.advertise_url,
            followers=app.followers,
            lease_seconds=app.lease_seconds,
            drain_seconds=app.drain_seconds,
        ),
        jupyterhub=hub_config(app),
        base_url=app.base_url,
        list_kernels=app.list_kernels,
        page=app.page,
        runtime_dir=Path(app.runtime_dir),
        registry_url=app.registry_url,
        shutdown_kernels_on_exit=app.shutdown_kernels_on_exit,
        answer_yes=app.answer_yes,
        traits=app,
    )
