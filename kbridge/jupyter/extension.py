"""The Jupyter Server extension: puts our connection class in the place of Jupyter Server's."""

from __future__ import annotations

import weakref
from typing import Any

from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as JupyterConnection,
)
from traitlets import Bool
from traitlets.config import LoggingConfigurable

from kbridge import __version__
from kbridge.jupyter.connection import ZMQChannelsWebsocketConnection

__all__ = ["KbridgeExtension", "link", "load"]

_SETTING = "kernel_websocket_connection_class"

_CHOSEN: weakref.WeakSet[Any] = weakref.WeakSet()  # servers for which somebody chose a class


class KbridgeExtension(LoggingConfigurable):
    """Settings of the extension; those of the bridge are ZMQChannelsWebsocketConnection's."""

    enabled = Bool(
        True,
        config=True,
        help="Whether kernel websockets go over kbridge; off, they are Jupyter Server's own.",
    )

    def take_over(self, serverapp: Any) -> bool:
        """Put our class in place, unless that is not wanted; say in the log which.

        Parameters
        ----------
        serverapp : jupyter_server.serverapp.ServerApp
            The server, initialized.

        Returns
        -------
        bool
            Whether kernel websockets go over kbridge.
        """
        reason = self._reason_against(serverapp)
        if reason:
            self.log.info("kbridge | %s", reason)
            return False
        serverapp.kernel_websocket_connection_class = ZMQChannelsWebsocketConnection
        serverapp.web_app.settings[_SETTING] = ZMQChannelsWebsocketConnection
        self.log.info(
            "kbridge | kernel websockets go over kbridge %s"
            " (--KbridgeExtension.enabled=False turns it off)",
            __version__,
        )
        return True

    def _reason_against(self, serverapp: Any) -> str:
        chosen = getattr(serverapp, _SETTING)
        if issubclass(chosen, ZMQChannelsWebsocketConnection):
            return f"on, by {_SETTING}"
        if not self.enabled:
            return "off, by KbridgeExtension.enabled"
        if serverapp.gateway_config.gateway_enabled:
            return "idle: kernels are behind a gateway, and so are their ZeroMQ sockets"
        if chosen is not JupyterConnection or _is_chosen(serverapp):
            name = f"{chosen.__module__}.{chosen.__qualname__}"
            return f"idle: {_SETTING} is configured, and stays {name}"
        return ""


def _is_chosen(serverapp: Any) -> bool:
    """Whether somebody chose Jupyter Server's own class, which looks like its default."""
    # The configuration of an application that is loaded after us comes only after `link`.
    sections = [serverapp.config[name] for name in serverapp.section_names()]
    return serverapp in _CHOSEN or any(_SETTING in section for section in sections)


def link(serverapp: Any) -> None:
    """Note whether somebody has chosen a class, before the server itself asks for the default."""
    if serverapp.trait_has_value(_SETTING):
        _CHOSEN.add(serverapp)


def load(serverapp: Any) -> None:
    """Load the extension into a Jupyter Server."""
    KbridgeExtension(parent=serverapp).take_over(serverapp)
