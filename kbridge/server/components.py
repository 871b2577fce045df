"""Creates the parts of a server from its configuration."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tornado import web
from traitlets import TraitError

from kbridge._version import __version__
from kbridge.connection.audit import AUDIT, AuditLog
from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import RegistryError, SetupError
from kbridge.hub.table import HubTable
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.processes import start_id
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import Owner, Replica
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.sessions import Sessions
from kbridge.link.holder.client import Holder
from kbridge.link.holder.keeper import Keeper
from kbridge.link.keepalive import Keepalive
from kbridge.page.sampler import Sampler
from kbridge.server.api.live_source import ServerSource
from kbridge.server.api.routes import make_application
from kbridge.server.api.services import Services
from kbridge.server.api.websocket import ChannelsHandler
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.auth.credentials import Credentials
from kbridge.server.auth.jupyterhub import JupyterHub
from kbridge.server.auth.open_connections import OpenConnections
from kbridge.server.auth.users import Users
from kbridge.server.config import AuthConfig, ListenConfig, ServerConfig
from kbridge.server.http.listen import TlsFiles
from kbridge.server.metrics import ServerMetrics
from kbridge.server.readiness import Directories, Readiness
from kbridge.server.restart import no_holder
from kbridge.server.safe_log import hide
from kbridge.server.setting_checks import (
    check_host,
    check_origins,
    database_hosts,
    is_loopback,
)
from kbridge.server.user_activity import ActivityReporter

if TYPE_CHECKING:
    from kbridge.cluster.membership import Membership
    from kbridge.cluster.ownership import Ownership
    from kbridge.cluster.remote_kernels import RemoteKernels
    from kbridge.cluster.sessions import ClusterSessions
    from kbridge.cluster.takeover import ReplicaHubs
    from kbridge.tracing.setup import Tracing

__all__ = ["Cluster", "Components", "access_policy", "build", "make_cluster", "make_registry"]

_HOLDER_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The parts of a replica.

    Attributes
    ----------
    membership : Membership
        Its lease, and its view of the cluster.
    ownership : Ownership
        The kernels that it owns.
    hubs : ReplicaHubs
        The hubs of kernels that it owns or follows.
    others : RemoteKernels
        The kernels of the other replicas.
    sessions : ClusterSessions
        The sessions of the cluster.
    """

    membership: Membership
    ownership: Ownership
    hubs: ReplicaHubs
    others: RemoteKernels
    sessions: ClusterSessions

    def open(self, services: Services, *, cookie_secret: bool) -> None:
        """Exchange requests with the other replicas; called once the server has joined.

        Parameters
        ----------
        services : Services
            The objects of the handlers, which take no requests yet.
        cookie_secret : bool
            True to sign cookies with a key that all replicas have.
        """
        secret = self.membership.secret
        self.others.peers.secret = secret
        self.membership.observe(self.others)
        policy = replace(services.auth.policy, cluster_secret=secret)
        if cookie_secret:
            policy = replace(policy, cookie_secret=Credentials.of_cluster(secret).cookie_secret)
            hide(policy.cookie_value())
        services.auth = replace(services.auth, policy=policy)


@dataclass(frozen=True, slots=True)
class Components:
    """The parts that the server opens and closes."""

    application: web.Application
    services: Services
    kernels: BridgeKernelManager
    sessions: Sessions | ClusterSessions
    registry: RegistryWriter
    hubs: HubTable
    keepalive: Keepalive | None
    audit: AuditLog | None
    tracing: Tracing | None
    cluster: Cluster | None


def access_policy(auth: AuthConfig, listen: ListenConfig) -> AccessPolicy:
    """Return the access rules of a configuration."""
    hostnames = (*auth.local_hostnames, listen.ip)
    return AccessPolicy(
        token=auth.token,
        # Browsers cannot reach a unix socket, and its other clients send any Host.
        check_hosts=not (auth.allow_remote_access or listen.sock),
        hostnames=frozenset(check_host(name) for name in hostnames if name),
        allow_origin=check_origins(auth.allow_origin),
        allow_origin_pat=re.compile(auth.allow_origin_pat) if auth.allow_origin_pat else None,
        cookie_secret=auth.cookie_secret,
    )


def make_registry(config: ServerConfig, log: logging.Logger) -> RegistryWriter:
    """Return the writer of the kernel registry.

    Raises
    ------
    RegistryError
        If kernels must outlive the server, but there is no registry to find them again.
    """
    url = config.registry_url.strip()
    if url.lower() in ("", "none"):
        if not config.shutdown_kernels_on_exit:
            raise RegistryError(
                "shutdown_kernels_on_exit=False needs a registry, because kernels could not be"
                " found again without one: set registry_url, or leave it at its default"
            )
        return RegistryWriter(log=log)
    pid = os.getpid()
    owner = Owner(config.address, platform.node(), pid, start_id(pid))
    return RegistryWriter(Registry(url), owner, log=log)


def make_cluster(
    config: ServerConfig, port: int, log: logging.Logger
) -> tuple[Membership, RegistryWriter]:
    """Return the membership in the cluster of the configuration, and the writer of its registry.

    Raises
    ------
    SetupError
        If the cluster has no registry, or the other replicas could not reach this server.
    """
    url, cluster, listen = config.registry_url.strip(), config.cluster, config.listen
    if url.lower() in ("", "none"):
        raise SetupError("cluster needs a registry_url: all replicas share that database")
    if listen.sock and not cluster.advertise_url:
        raise SetupError(
            "a replica that listens on a unix socket needs an advertise_url: that of a proxy, which"
            " passes requests on to the socket"
        )
    # Both import SQLAlchemy, which servers without kernels need not load.
    from kbridge.cluster.membership import Membership
    from kbridge.kernels.registry.cluster_registry import ClusterRegistry

    base = cluster.advertise_url + config.base_url
    if not cluster.advertise_url:
        everywhere = listen.ip in ("", "0.0.0.0", "::")  # noqa: S104
        reached = replace(listen, ip=platform.node()) if everywhere else listen
        base = reached.url(port, config.base_url)
        _check_reachable(reached.ip, base.removesuffix(config.base_url), url)
    pid = os.getpid()
    owner = Owner(cluster.name, platform.node(), pid, start_id(pid))
    me = Replica(
        secrets.token_hex(8),
        cluster.name,
        base,
        *(owner.hostname, pid, owner.start_id, __version__),
    )
    registry = ClusterRegistry(url, me)
    if registry.warning:
        log.warning("%s", registry.warning)
    lease = Lease(cluster.lease_seconds)
    membership = Membership(registry.store, lease, count=cluster.followers, log=log)
    return membership, RegistryWriter(registry, owner, log=log)


def _check_reachable(ip: str, base: str, registry_url: str) -> None:
    """Refuse a loopback address that no operator has chosen, if the database is elsewhere."""
    away = [host for host in database_hosts(registry_url) if not is_loopback(host)]
    if away and is_loopback(ip):
        raise SetupError(
            f"replicas on other machines, as the database {away[0]} is, cannot reach {base}: set"
            " KbridgeApp.ip, or KbridgeApp.advertise_url to a URL that they can reach. If all"
            f" replicas run on this machine, set KbridgeApp.advertise_url to {base}"
        )


def _make_keeper(config: ServerConfig, hubs: HubTable, log: logging.Logger) -> Keeper | None:
    """Return the object that keeps connections while no bridge runs, if that is possible."""
    settings = hubs.settings
    if config.cluster.name or no_holder(settings):
        return None  # in a cluster, another replica must get the identities of the connections
    name = hashlib.sha256(config.address.encode()).hexdigest()[:16]
    directory = Path(settings.journal_dir).expanduser().absolute()
    limit = settings.journal_disk_total
    path = config.runtime_dir / f"kbridge-{name}.holder"
    return Keeper(Holder(path, directory, limit, _HOLDER_SECONDS), log)


def _directories(config: ServerConfig, hubs: HubTable, registry: RegistryWriter) -> Directories:
    journal = hubs.settings.journal_dir
    return Directories(
        runtime=config.runtime_dir,
        registry=registry.directory,
        journal=Path(journal).expanduser().absolute() if journal else None,
    )


def build(config: ServerConfig, port: int, log: logging.Logger) -> Components:
    """Create all parts of a server.

    Parameters
    ----------
    config : ServerConfig
    port : int
        The port that the server listens on, 0 for a unix socket. It is part of the cookie's name,
        because browsers send the cookies of one host to all of its ports.
    log : logging.Logger

    Raises
    ------
    RegistryError
        See `make_registry`.
    SetupError
        If the audit log cannot be opened, or see `make_cluster`.
    traitlets.TraitError
        If settings contradict each other.
    """
    membership = None
    if config.cluster.name:
        membership, registry = make_cluster(config, port, log)
    else:
        registry = make_registry(config, log)
    hubs = HubTable(log=log)
    kernels = BridgeKernelManager(
        hubs=hubs,
        writer=registry,
        lease=membership.lease if membership is not None else None,
        parent=config.traits,
        log=log,
        connection_dir=str(config.runtime_dir),
    )
    if kernels.max_kernels is not None and kernels.prespawn_count > kernels.max_kernels:
        raise TraitError(
            f"prespawn_count ({kernels.prespawn_count}) is more than max_kernels"
            f" ({kernels.max_kernels})"
        )
    sessions: Sessions | ClusterSessions = Sessions(kernels, registry)
    remote = None
    if membership is not None:
        remote = _remote(kernels, membership, config.listen.tls)
        _, sessions = remote
    hubs.configure(ZMQChannelsWebsocketConnection.hub_settings(config.traits.config, kernels))
    unkept = "the server was a replica of a cluster" if membership else no_holder(hubs.settings)
    hubs.keep_connections(_make_keeper(config, hubs, log), unkept)
    jupyterhub = None if config.jupyterhub is None else JupyterHub(config.jupyterhub)
    auth = _authenticator(config, port, jupyterhub)
    services = Services(
        kernels, sessions, hubs, auth, base_url=config.base_url, list_kernels=config.list_kernels
    )
    relays = None if remote is None else remote[0].relays
    services.metrics = ServerMetrics(
        hubs, kernels, per_kernel=config.metrics.per_kernel, relays=relays
    )
    services.metrics_token = config.metrics.token
    services.readiness = Readiness(kernels, hubs, _directories(config, hubs, registry), log)
    services.readiness.membership = membership
    services.cluster = None if remote is None else remote[0]
    services.page = config.page
    services.jupyterhub = jupyterhub
    services.user_activity = _user_activity(kernels, jupyterhub)
    services.open_connections = None if auth.users is None else OpenConnections(auth.users)
    services.sampler = Sampler(ServerSource(services)) if config.page else None
    interval = config.http.ws_ping_interval
    keepalive = Keepalive(interval) if interval else None
    tracing = _tracing() if config.metrics.tracing else None
    if tracing is not None:
        hubs.trace_executions(tracing.spans)
    audit = AuditLog(config.audit.path, config.audit.code, log) if config.audit.path else None
    application = make_application(
        services,
        ChannelsHandler,
        **({} if audit is None else {AUDIT: audit}),
        config=config.traits.config,
        kernel_manager=kernels,
        hubs=hubs,
        websocket_max_message_size=config.http.websocket_max_message_size,
        kbridge_keepalive=keepalive,
    )
    cluster = None
    if membership is not None and remote is not None:
        from kbridge.cluster.ownership import Ownership
        from kbridge.cluster.takeover import ReplicaHubs

        replica = ReplicaHubs(membership, hubs, log)
        others, _ = remote
        ownership = Ownership(membership, kernels, replica, others.peers, log)
        others.wait_for(ownership)
        cluster = Cluster(membership, ownership, replica, *remote)
    parts = (application, services, kernels, sessions, registry, hubs, keepalive, audit, tracing)
    return Components(*parts, cluster)


def _remote(
    kernels: BridgeKernelManager, membership: Membership, tls: TlsFiles
) -> tuple[RemoteKernels, ClusterSessions]:
    from kbridge.cluster.peers import Peers
    from kbridge.cluster.remote_kernels import RemoteKernels
    from kbridge.cluster.sessions import ClusterSessions

    others = RemoteKernels(membership, Peers(certificate=(tls.certfile, tls.keyfile)))
    return others, ClusterSessions(kernels, others, membership.store)


def _user_activity(kernels: BridgeKernelManager, hub: JupyterHub | None) -> ActivityReporter | None:
    if hub is None or not hub.config.activity:
        return None
    return ActivityReporter.of(kernels.index, hub.report_activity, hub.config.activity)


def _tracing() -> Tracing:
    # Not before: a server that does not trace starts without it.
    from kbridge.tracing.start import start_tracing

    return start_tracing()


def _authenticator(config: ServerConfig, port: int, hub: JupyterHub | None) -> Authenticator:
    policy = access_policy(config.auth, config.listen)
    hide(policy.cookie_value())
    users: Users | None = None
    if hub is not None:
        users = Users(hub, fresh=hub.config.fresh, outage=hub.config.outage)
    elif config.auth.resolver is not None:
        users = Users(config.auth.resolver)
    policy = replace(policy, users=users is not None)
    # The path is part of the name, because two servers behind one proxy may differ only in it.
    path = hashlib.sha256(config.base_url.encode()).hexdigest()[:8]
    # Browsers reach the replicas of a cluster at one address, whichever ports these have.
    place = config.cluster.name or port
    name = f"kbridge-{place}-{path}"
    return Authenticator(
        policy,
        config.auth.cors,
        cookie_name=name,
        users=users,
        metrics_token=config.metrics.token,
    )
