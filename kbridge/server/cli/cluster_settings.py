"""The settings of `KbridgeApp` for clusters."""

from __future__ import annotations

from typing import Any

from traitlets import Float, HasTraits, Integer, Unicode, validate

from kbridge.server.setting_checks import check_cluster, check_url, checked

__all__ = ["ClusterSettings"]


class ClusterSettings(HasTraits):
    """Settings for servers that are one service."""

    cluster = Unicode(
        "",
        help="""Name of a cluster. All servers with this name and the same `registry_url` are
        replicas: each serves the kernels of all, and the others take over the kernels of a server
        that ends. Letters, digits, `.`, `_` and `-`. Empty: this server is on its own. See
        docs/replicas.md.""",
    ).tag(config=True)
    advertise_url = Unicode(
        "",
        help="""URL under which the other replicas of `cluster` reach this server, without the path
        of `base_url`. By default made from the address that it listens on, or from the name of the
        machine if it listens on all addresses. A loopback address is refused by default if the
        database is on another machine; set it here if all replicas run on this machine.""",
    ).tag(config=True)
    followers = Integer(
        1,
        min=0,
        help="""Number of other replicas that keep the output of each kernel in a cluster, so that
        nothing is lost if a replica is killed. 0: the output that a client has not received is lost
        then.""",
    ).tag(config=True)
    lease_seconds = Float(
        5.0,
        min=1.0,
        max=300.0,
        help="""Seconds after which the other replicas of `cluster` take over the kernels of a
        server that does not answer any longer. A server that has not reached the database for so
        long restarts and culls no kernels.""",
    ).tag(config=True)
    drain_seconds = Float(
        5.0,
        min=0.0,
        max=600.0,
        help="""Seconds over which a replica of `cluster` gives its kernels to the others when it is
        stopped, and closes their websockets, so that not all clients connect again at once.""",
    ).tag(config=True)

    @validate("cluster")
    def _valid_cluster(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.cluster", check_cluster, proposal["value"])

    @validate("advertise_url")
    def _valid_advertise_url(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.advertise_url", check_url, proposal["value"])
