"""The kernel gateway's environment variables, each an alias of one of our own settings.

The command line comes before config files, config files before these, these before defaults.
The empty string counts as unset where the setting is a number; elsewhere it is a value, as in
the gateway: `KG_AUTH_TOKEN=` asks for no token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from traitlets import TraitError

__all__ = ["VARIABLES", "Variable", "read"]

_ON = {"true", "1", "yes", "on"}
_OFF = {"false", "0", "no", "off", ""}
# What the gateway's own two APIs are called; we are the first.
_WEBSOCKET_API = {"", "jupyter-websocket", "kernel_gateway.jupyter_websocket"}


class _Unset(Exception):
    """The variable is there, and says nothing."""


def text(value: str) -> str:
    """Take a value as it is."""
    return value


def number(value: str) -> int:
    """Read a whole number; empty is unset."""
    if not value.strip():
        raise _Unset
    return int(value)


def flag(value: str) -> bool:
    """Read a truth value, in any case."""
    lower = value.strip().lower()
    if lower not in _ON | _OFF:
        raise ValueError(value)
    return lower in _ON


def words(value: str) -> list[str]:
    """Read a list with commas."""
    return [word.strip() for word in value.split(",") if word.strip()]


def websocket_api(value: str) -> str:
    """Accept the names of the websocket API only: the other one is not offered."""
    if value not in _WEBSOCKET_API:
        raise ValueError(value)
    raise _Unset


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable: the setting (`Class.trait`) that it is an alias of, and how it is read."""

    name: str
    setting: str
    parse: Callable[[str], Any] = text


VARIABLES = (
    Variable("KG_AUTH_TOKEN", "KbridgeApp.token"),
    Variable("KG_IP", "KbridgeApp.ip"),
    Variable("KG_PORT", "KbridgeApp.port", number),
    Variable("KG_PORT_RETRIES", "KbridgeApp.port_retries", number),
    Variable("KG_BASE_URL", "KbridgeApp.base_url"),
    Variable("KG_LIST_KERNELS", "KbridgeApp.list_kernels", flag),
    Variable("KG_ALLOW_CREDENTIALS", "KbridgeApp.allow_credentials"),
    Variable("KG_ALLOW_HEADERS", "KbridgeApp.allow_headers"),
    Variable("KG_ALLOW_METHODS", "KbridgeApp.allow_methods"),
    Variable("KG_ALLOW_ORIGIN", "KbridgeApp.allow_origin"),
    Variable("KG_EXPOSE_HEADERS", "KbridgeApp.expose_headers"),
    Variable("KG_MAX_AGE", "KbridgeApp.max_age"),
    Variable("KG_TRUST_XHEADERS", "KbridgeApp.trust_xheaders", flag),
    Variable("KG_CERTFILE", "KbridgeApp.certfile"),
    Variable("KG_KEYFILE", "KbridgeApp.keyfile"),
    Variable("KG_CLIENT_CA", "KbridgeApp.client_ca"),
    Variable("KG_SSL_VERSION", "KbridgeApp.ssl_version", number),
    Variable("KG_WS_PING_INTERVAL_SECS", "KbridgeApp.ws_ping_interval", number),
    Variable("KG_MAX_KERNELS", "BridgeKernelManager.max_kernels", number),
    Variable("KG_PRESPAWN_COUNT", "BridgeKernelManager.prespawn_count", number),
    Variable("KG_DEFAULT_KERNEL_NAME", "BridgeKernelManager.default_kernel_name"),
    Variable("KG_FORCE_KERNEL_NAME", "BridgeKernelManager.force_kernel_name"),
    Variable("KG_ENV_WHITELIST", "BridgeKernelManager.allowed_envs", words),
    Variable("KG_ENV_PROCESS_WHITELIST", "BridgeKernelManager.inherited_envs", words),
    Variable("KG_SEED_URI", "BridgeKernelManager.seed_uri"),
    Variable("KG_API", "", websocket_api),
)
# Where an empty name would be taken for a name: the default stands instead.
_EMPTY_IS_UNSET = {"KG_DEFAULT_KERNEL_NAME", "KG_SEED_URI", "KG_BASE_URL"}


def read(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read the variables.

    Returns
    -------
    config : dict
        Settings by class and trait, for `traitlets.config.Config`.
    unknown : list of str
        Names that begin with `KG_` and are not ours.

    Raises
    ------
    traitlets.TraitError
        If a value does not parse; names the variable, and never a secret's value.
    """
    config: dict[str, dict[str, Any]] = {}
    for variable in VARIABLES:
        value = environ.get(variable.name)
        if value is None or (not value and variable.name in _EMPTY_IS_UNSET):
            continue
        try:
            parsed = variable.parse(value)
        except _Unset:
            continue
        except ValueError:
            raise TraitError(f"{variable.name} cannot be {value!r} here") from None
        owner, trait = variable.setting.split(".")
        config.setdefault(owner, {})[trait] = parsed
    known = {variable.name for variable in VARIABLES}
    return config, sorted(name for name in environ if name.startswith("KG_") and name not in known)
