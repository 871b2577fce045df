"""Maps the kernel gateway's settings to the settings of kbridge.

A setting of Jupyter Kernel Gateway 3.0 is a trait (`KernelGatewayApp.auth_token`), and most have an
environment variable (`KG_AUTH_TOKEN`), too. `SETTINGS` is the table of both. The command line has
precedence over config files, these over the environment, and the environment over defaults. An
empty variable counts as unset if the setting is a number; otherwise it is a value, as in the
gateway: `KG_AUTH_TOKEN=` turns authentication off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from traitlets import TraitError
from traitlets.config import Config

__all__ = ["SECTIONS", "SETTINGS", "VARIABLES", "Setting", "nearest_variable", "read", "translate"]

_ON = {"true", "1", "yes", "on"}
_OFF = {"false", "0", "no", "off", ""}
# The gateway's names of its two APIs; kbridge has the first.
_WEBSOCKET_API = {"", "jupyter-websocket", "kernel_gateway.jupyter_websocket"}
_HTTP_API = {"notebook-http", "kernel_gateway.notebook_http"}
# The class of the gateway's kernels and its bases, which jupyter_client does not know.
_MANAGERS = ("SeedingMappingKernelManager", "AsyncMappingKernelManager", "MappingKernelManager")
# The classes that Jupyter Server has, too.
_SERVERS = _MANAGERS[1:]


# A converter returns this for a value that leaves the setting unset.
_UNSET: Final[Any] = object()


def text(value: str) -> str:
    """Return the text of a variable unchanged."""
    return value


def number(value: str) -> Any:
    """Read an integer; an empty string is unset."""
    if not value.strip():
        return _UNSET
    return int(value)


def flag(value: str) -> bool:
    """Read a boolean, in upper or lower case."""
    lower = value.strip().lower()
    if lower not in _ON | _OFF:
        raise ValueError(value)
    return lower in _ON


def words(value: str) -> list[str]:
    """Read a list separated by commas."""
    return [word.strip() for word in value.split(",") if word.strip()]


def websocket_api(value: str) -> Any:
    """Accept the names of the websocket API; kbridge does not have the other one."""
    plain = value.strip("'\"")
    if plain in _HTTP_API:
        raise TraitError(
            "kbridge has no notebook-http mode (KG_API, KernelGatewayApp.api): it serves kernels"
            " over websockets only. Run the Jupyter Kernel Gateway for a notebook that is a web API"
        )
    if plain not in _WEBSOCKET_API:
        raise ValueError(value)
    return _UNSET


def given(value: Any) -> Any:
    """Return the value of a trait; None counts as unset, as in the gateway."""
    if value is None:
        return _UNSET
    return value


def named(value: Any) -> Any:
    """Return a name; an empty string counts as unset, as in the gateway."""
    if value in (None, ""):
        return _UNSET
    return value


def truth(value: Any) -> Any:
    """Return a boolean; the gateway also accepts a number."""
    return bool(value) if isinstance(value, int) else value


def api(value: Any) -> Any:
    """Refuse every API except the websocket API."""
    return websocket_api(str(value))


def ignored(_value: Any) -> Any:
    """Ignore a setting that has no effect in the gateway's websocket mode."""
    return _UNSET


def default_only(default: str) -> Callable[[Any], Any]:
    """Refuse every class but the gateway's own: classes of Jupyter Server do not work here."""

    def convert(value: Any) -> Any:
        name = value if isinstance(value, str) else f"{value.__module__}.{value.__qualname__}"
        if name.strip("'\"") == default:
            return _UNSET
        raise ValueError(value)

    return convert


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the gateway.

    Attributes
    ----------
    trait : str
        Its `Class.trait` in the gateway.
    setting : str
        Its `Class.trait` in kbridge; empty if it has no effect in kbridge.
    name : str
        Its environment variable; empty if it has none.
    parse : callable
        Reads the variable.
    convert : callable
        Converts the trait's value from the command line or a config file.
    """

    trait: str
    setting: str
    name: str = ""
    parse: Callable[[str], Any] = text
    convert: Callable[[Any], Any] = given


def _rows() -> Iterator[Setting]:
    app, ours, kernels = "KernelGatewayApp", "KbridgeApp", "BridgeKernelManager"
    yield Setting(f"{app}.auth_token", f"{ours}.token", "KG_AUTH_TOKEN")
    yield Setting(f"{app}.ip", f"{ours}.ip", "KG_IP")
    yield Setting(f"{app}.port", f"{ours}.port", "KG_PORT", number)
    yield Setting(f"{app}.port_retries", f"{ours}.port_retries", "KG_PORT_RETRIES", number)
    yield Setting(f"{app}.base_url", f"{ours}.base_url", "KG_BASE_URL")
    for name in ("credentials", "headers", "methods", "origin"):
        trait = f"allow_{name}"
        yield Setting(f"{app}.{trait}", f"{ours}.{trait}", f"KG_{trait.upper()}")
    yield Setting(f"{app}.expose_headers", f"{ours}.expose_headers", "KG_EXPOSE_HEADERS")
    yield Setting(f"{app}.max_age", f"{ours}.max_age", "KG_MAX_AGE")
    yield Setting(
        f"{app}.trust_xheaders", f"{ours}.trust_xheaders", "KG_TRUST_XHEADERS", flag, truth
    )
    yield Setting(f"{app}.certfile", f"{ours}.certfile", "KG_CERTFILE")
    yield Setting(f"{app}.keyfile", f"{ours}.keyfile", "KG_KEYFILE")
    yield Setting(f"{app}.client_ca", f"{ours}.client_ca", "KG_CLIENT_CA")
    yield Setting(f"{app}.ssl_version", f"{ours}.ssl_version", "KG_SSL_VERSION", number)
    yield Setting(
        f"{app}.ws_ping_interval", f"{ours}.ws_ping_interval", "KG_WS_PING_INTERVAL_SECS", number
    )
    yield Setting(f"{app}.max_kernels", f"{kernels}.max_kernels", "KG_MAX_KERNELS", number)
    yield Setting(f"{app}.prespawn_count", f"{kernels}.prespawn_count", "KG_PRESPAWN_COUNT", number)
    yield Setting(
        f"{app}.default_kernel_name",
        f"{kernels}.default_kernel_name",
        "KG_DEFAULT_KERNEL_NAME",
        convert=named,
    )
    yield Setting(
        f"{app}.force_kernel_name", f"{kernels}.force_kernel_name", "KG_FORCE_KERNEL_NAME"
    )
    yield Setting(
        f"{app}.env_process_whitelist",
        f"{kernels}.inherited_envs",
        "KG_ENV_PROCESS_WHITELIST",
        words,
    )
    yield Setting(f"{app}.seed_uri", f"{kernels}.seed_uri", "KG_SEED_URI")
    yield Setting(f"{app}.api", "", "KG_API", websocket_api, api)
    yield Setting(f"{app}.kernel_spec_manager_class", f"{kernels}.kernel_spec_manager_class")
    yield Setting(f"{app}.cookie_secret", f"{ours}.cookie_secret")
    yield Setting(f"{app}.cookie_secret_file", "", convert=ignored)
    for name, default in (
        ("authorizer_class", "jupyter_server.auth.authorizer.AllowAllAuthorizer"),
        ("identity_provider_class", "kernel_gateway.auth.identity.GatewayIdentityProvider"),
        ("kernel_manager_class", f"kernel_gateway.services.kernels.manager.{_MANAGERS[0]}"),
        (
            "kernel_websocket_connection_class",
            "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection",
        ),
    ):
        yield Setting(f"{app}.{name}", "", convert=default_only(default))
    # Settings that every Jupyter program has.
    for name in ("answer_yes", "config_file", "config_file_name", "generate_config"):
        yield Setting(f"{app}.{name}", f"{ours}.{name}")
    for name in ("log_datefmt", "log_format", "log_level", "logging_config"):
        yield Setting(f"{app}.{name}", f"{ours}.{name}")
    for name in ("show_config", "show_config_json"):
        yield Setting(f"{app}.{name}", f"{ours}.{name}")

    websocket = "JupyterWebsocketPersonality"
    yield Setting(
        f"{websocket}.list_kernels", f"{ours}.list_kernels", "KG_LIST_KERNELS", flag, truth
    )
    yield Setting(
        f"{websocket}.env_whitelist", f"{kernels}.allowed_envs", "KG_ENV_WHITELIST", words
    )

    notebook = "NotebookHTTPPersonality"
    yield Setting(f"{notebook}.cell_parser", "", "KG_CELL_PARSER", ignored, ignored)
    yield Setting(
        f"{notebook}.allow_notebook_download", "", "KG_ALLOW_NOTEBOOK_DOWNLOAD", ignored, ignored
    )
    yield Setting(f"{notebook}.static_path", "", "KG_STATIC_PATH", ignored, ignored)
    yield Setting(f"{notebook}.comment_prefix", "", convert=ignored)

    own = "jupyter_client.ioloop.AsyncIOLoopKernelManager"
    for manager in _MANAGERS:
        for name in (
            *("allow_tracebacks", "allowed_message_types", "buffer_offline_messages"),
            *("cull_busy", "cull_connected", "cull_idle_timeout", "cull_interval"),
            *("default_kernel_name", "kernel_info_timeout", "root_dir", "shared_context"),
            *("traceback_replacement_message", "transport_encryption", "untracked_message_types"),
            "use_pending_kernels",
        ):
            yield Setting(f"{manager}.{name}", f"{kernels}.{name}")
        yield Setting(f"{manager}.kernel_manager_class", "", convert=default_only(own))


SETTINGS = tuple(_rows())
VARIABLES = tuple(setting for setting in SETTINGS if setting.name)
_TRAITS = {setting.trait: setting for setting in SETTINGS}
SECTIONS = frozenset(trait.partition(".")[0] for trait in _TRAITS)
# Traits of kbridge's own class KernelGatewayApp.
_OURS = {f"KernelGatewayApp.{name}" for name in ("alias_dir", "install_alias", "remove_alias")}
# An empty value would be used as a name: use the default instead.
_EMPTY_IS_UNSET = {"KG_DEFAULT_KERNEL_NAME", "KG_SEED_URI", "KG_BASE_URL"}


def read(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read the variables.

    Returns
    -------
    config : dict
        Settings by class and trait, for `traitlets.config.Config`.
    unknown : list of str
        Names that begin with `KG_` and do not belong to the gateway.

    Raises
    ------
    traitlets.TraitError
        If a value is not valid. The message names the variable, and never contains a secret.
    """
    config: dict[str, dict[str, Any]] = {}
    for variable in VARIABLES:
        value = environ.get(variable.name)
        if value is None or (not value and variable.name in _EMPTY_IS_UNSET):
            continue
        try:
            parsed = variable.parse(value)
        except ValueError:
            raise TraitError(f"{variable.name} cannot be {value!r} here") from None
        if parsed is _UNSET:
            continue
        owner, trait = variable.setting.split(".")
        config.setdefault(owner, {})[trait] = parsed
    known = {variable.name for variable in VARIABLES}
    return config, sorted(name for name in environ if name.startswith("KG_") and name not in known)


def translate(config: Config, *, shared: bool = False) -> Config:
    """Return a configuration in which the gateway's traits are renamed to those of kbridge.

    If a setting is given under both names, the value under the kbridge name is used.

    Parameters
    ----------
    config : Config
        The settings of one source.
    shared : bool
        True if Jupyter Server reads the source, too: settings of its kernel managers that kbridge
        cannot honour are left out.

    Raises
    ------
    traitlets.TraitError
        If the gateway does not have the trait, or kbridge cannot honour its value.
    """
    if SECTIONS.isdisjoint(config):
        return config
    found = Config({name: value for name, value in config.items() if name not in SECTIONS})
    for section in SECTIONS & set(config):
        for name, value in config[section].items():
            if f"{section}.{name}" in _OURS:
                found[section][name] = value
                continue
            setting = _TRAITS.get(f"{section}.{name}")
            foreign = shared and section in _SERVERS
            if setting is None:
                if foreign:
                    continue
                raise TraitError(f"the kernel gateway has no {section}.{name}{_nearest(name)}")
            try:
                converted = setting.convert(value)
            except ValueError:
                if foreign:
                    continue
                raise TraitError(f"{setting.trait} cannot be {str(value)!r} here") from None
            if converted is _UNSET:
                continue
            owner, trait = setting.setting.split(".")
            if trait not in found[owner]:
                found[owner][trait] = converted
    return found


def nearest_variable(name: str) -> str:
    """Return a hint with the name that was probably meant, or an empty string."""
    import difflib  # needed for mistakes only

    near = difflib.get_close_matches(name, [variable.name for variable in VARIABLES], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _nearest(name: str) -> str:
    import difflib

    names = {trait.partition(".")[2]: trait for trait in reversed(_TRAITS)}
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {names[near[0]]}?)" if near else ""
