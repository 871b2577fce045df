"""From settings to a server that is ready to listen: what is made, and who gets whom."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado import web
from traitlets import TraitError

from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import RegistryError
from kbridge.hub.table import HubTable
from kbridge.kernels.lifecycle.processes import birth
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import Owner
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import Ledger
from kbridge.kernels.sessions import Sessions
from kbridge.link.keepalive import Keepalive
from kbridge.server.api.routes import make_application
from kbridge.server.api.services import Services
from kbridge.server.api.websocket import ChannelsHandler
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.auth.cors import Cors
from kbridge.server.cli.setting_checks import check_host, check_origins
from kbridge.server.safe_log import hide

if TYPE_CHECKING:
    from kbridge.server.cli.app import KbridgeApp

__all__ = ["Wired", "access_policy", "make_ledger", "wire"]


@dataclass(frozen=True, slots=True)
class Wired:
    """What the lifecycle opens and closes."""

    application: web.Application
    services: Services
    kernels: BridgeKernelManager
    sessions: Sessions
    ledger: Ledger
    hubs: HubTable
    keepalive: Keepalive | None


def access_policy(app: KbridgeApp) -> AccessPolicy:
    """Return the rules that the settings mean."""
    pattern = app.allow_origin_pat
    policy = AccessPolicy(
        token=app.token,
        # No browser reaches a unix socket, and its clients send any Host they like.
        check_hosts=not (app.allow_remote_access or app.sock),
        hostnames=frozenset(check_host(name) for name in (*app.local_hostnames, app.ip) if name),
        allow_origin=check_origins(app.allow_origin),
        allow_origin_pat=re.compile(pattern) if pattern else None,
        cookie_secret=app.cookie_secret,
    )
    hide(policy.cookie_value())
    return policy


def make_ledger(app: KbridgeApp) -> Ledger:
    """Return what kernels are written down in, as the settings say.

    Raises
    ------
    RegistryError
        If kernels are to stay, and nothing would find them again.
    """
    url = app.registry_url.strip()
    if url.lower() in ("", "none"):
        if not app.shutdown_kernels_on_exit:
            raise RegistryError(
                "shutdown_kernels_on_exit=False needs a registry, or nobody would find the kernels"
                " again: set registry_url, or leave it at its default"
            )
        return Ledger(log=app.log)
    # What the settings say, and not the port that was free: the next start has it in common.
    address = app.sock or f"{app.ip or '*'}:{app.port}"
    pid = os.getpid()
    owner = Owner(f"{address}{app.base_url}", platform.node(), pid, birth(pid))
    return Ledger(Registry(url), owner, log=app.log)


def wire(app: KbridgeApp, port: int) -> Wired:
    """Make everything.

    Parameters
    ----------
    app : KbridgeApp
        The settings.
    port : int
        The one listened on, 0 for a unix socket. It is in the cookie's name, because browsers
        send the cookies of one host to all of its ports.

    Raises
    ------
    RegistryError
        As `make_ledger`.
    traitlets.TraitError
        If settings contradict each other.
    """
    ledger = make_ledger(app)
    hubs = HubTable(log=app.log)
    kernels = BridgeKernelManager(
        hubs=hubs, ledger=ledger, parent=app, log=app.log, connection_dir=app.runtime_dir
    )
    if kernels.max_kernels is not None and kernels.prespawn_count > kernels.max_kernels:
        raise TraitError(
            f"prespawn_count ({kernels.prespawn_count}) is more than max_kernels"
            f" ({kernels.max_kernels})"
        )
    sessions = Sessions(kernels, ledger)
    hubs.configure(ZMQChannelsWebsocketConnection.hub_settings(app.config, kernels))
    # One server a path below a host: two behind one proxy do not take each other's cookie.
    path = hashlib.sha256(app.base_url.encode()).hexdigest()[:8]
    services = Services(
        kernels=kernels,
        sessions=sessions,
        hubs=hubs,
        auth=Authenticator(
            access_policy(app),
            Cors(
                allow_credentials=app.allow_credentials,
                allow_headers=app.allow_headers,
                allow_methods=app.allow_methods,
                expose_headers=app.expose_headers,
                max_age=app.max_age,
            ),
            cookie_name=f"kbridge-{port}-{path}",
        ),
        base_url=app.base_url,
        list_kernels=app.list_kernels,
    )
    keepalive = Keepalive(app.ws_ping_interval) if app.ws_ping_interval else None
    application = make_application(
        services,
        ChannelsHandler,
        config=app.config,
        kernel_manager=kernels,
        hubs=hubs,
        websocket_max_message_size=app.websocket_max_message_size,
        kbridge_keepalive=keepalive,
    )
    return Wired(application, services, kernels, sessions, ledger, hubs, keepalive)
