"""The settings of `KbridgeApp` for JupyterHub, and JupyterHub's environment variables.

JupyterHub gives its services their address and their tokens in variables. Kbridge reads them as
defaults: every other source of settings has precedence.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from traitlets import Bool, Float, HasTraits, TraitError, Unicode, default

from kbridge.server.auth.jupyterhub import HubConfig

__all__ = ["HubSettings", "hub_config", "read"]

_SERVICE: Final = "JUPYTERHUB_SERVICE_NAME"
_NEEDED: Final = (_SERVICE, "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_API_URL")


class HubSettings(HasTraits):
    """Settings for servers whose users come from JupyterHub."""

    jupyterhub = Bool(
        help="""Let users of JupyterHub in: by a login there, or with a token of it. Each user
        sees and reaches the kernels that they have started; the token of this server and
        `hub_admin_scope` open all of them. By default True for a service of JupyterHub
        (JUPYTERHUB_SERVICE_NAME is set). Needs `pip install '.[jupyterhub]'` in a clone. See
        docs/jupyterhub.md."""
    ).tag(config=True)
    hub_admin_scope = Unicode(
        "custom:kbridge:admin",
        help="""Scope of JupyterHub with which users reach the kernels of all users, the metrics,
        and the shutdown of this server. Empty: no user does.""",
    ).tag(config=True)
    hub_cache_seconds = Float(
        60.0,
        min=0.0,
        help="""Seconds for which an answer of JupyterHub about a token holds. A token that was
        withdrawn works no longer than that; its open websockets end at most a quarter later, but
        not before 5 s.""",
    ).tag(config=True)
    hub_outage_seconds = Float(
        900.0,
        min=0.0,
        help="""Seconds for which users stay known while JupyterHub does not answer. All others
        receive 503.""",
    ).tag(config=True)
    hub_activity_seconds = Float(
        300.0,
        min=0.0,
        help="""Seconds between two reports to JupyterHub of when users were last active; 0 for no
        reports. JupyterHub must give the service the scope `users:activity`.""",
    ).tag(config=True)

    @default("jupyterhub")
    def _default_jupyterhub(self) -> bool:
        return bool(os.environ.get(_SERVICE))


def read(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that JupyterHub gives its service, by their names.

    Parameters
    ----------
    environ : mapping
        The environment. Without JUPYTERHUB_SERVICE_NAME, as in a user's server, nothing is read.
    """
    if not environ.get(_SERVICE):
        return {}
    found: dict[str, Any] = {"answer_yes": True}  # nobody is there to answer
    if prefix := environ.get("JUPYTERHUB_SERVICE_PREFIX"):
        found["base_url"] = prefix
    if url := environ.get("JUPYTERHUB_SERVICE_URL"):
        parts = urlsplit(url)
        found |= {"ip": parts.hostname or "", "port_retries": 0}
        if parts.port:
            found["port"] = parts.port
        if parts.scheme == "https":
            files = {"certfile": "CERTFILE", "keyfile": "KEYFILE", "client_ca": "CLIENT_CA"}
            names = {trait: f"JUPYTERHUB_SSL_{name}" for trait, name in files.items()}
            found |= {trait: environ[name] for trait, name in names.items() if environ.get(name)}
    return found


def hub_config(app: Any) -> HubConfig | None:
    """Return the configuration for JupyterHub; None if users do not come from there.

    Raises
    ------
    traitlets.TraitError
        If a variable is missing, or the package `jupyterhub` is not installed.
    """
    if not app.jupyterhub:
        return None
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise TraitError(
            f"KbridgeApp.jupyterhub needs the environment variables {', '.join(missing)}:"
            " JupyterHub sets them for a service that it starts; see docs/jupyterhub.md for others"
        )
    if importlib.util.find_spec("jupyterhub") is None:
        raise TraitError(
            "KbridgeApp.jupyterhub needs the package jupyterhub:"
            " pip install '.[jupyterhub]' in a clone of kbridge"
        )
    name = os.environ[_SERVICE]
    return HubConfig(
        name=name,
        api_url=os.environ["JUPYTERHUB_API_URL"],
        api_token=os.environ["JUPYTERHUB_API_TOKEN"],
        client_id=os.environ.get("JUPYTERHUB_CLIENT_ID") or f"service-{name}",
        callback=os.environ.get("JUPYTERHUB_OAUTH_CALLBACK_URL") or f"{app.base_url}oauth_callback",
        admin_scope=app.hub_admin_scope,
        fresh=app.hub_cache_seconds,
        outage=app.hub_outage_seconds,
        activity=app.hub_activity_seconds,
    )
