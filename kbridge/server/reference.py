"""Reference of all settings, in two forms: the page docs/settings.md, and the config file.

`python -m kbridge.server.reference > docs/settings.md` writes the page. A test compares it with the
code, so that every setting is documented. `kbridge --generate-config` writes the config file.
Uncommenting a line of it without other edits changes nothing: a default that is computed at the
start is written as `...`, which no setting accepts.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from traitlets import TraitType
from traitlets.config import Configurable

from kbridge.server.cli import gateway_settings
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.options import is_computed

__all__ = ["config_page", "settings_page"]

_INTRODUCTION = """\
# Settings

Generated from the code by `python -m kbridge.server.reference > docs/settings.md`.

A setting can be given in four places; the first has precedence over the others:

1. on the command line: `kbridge --port 9999`, or in full `kbridge --KbridgeApp.port=9999`;
2. in a config file, `kbridge_config.py` or `.json` in a directory that `jupyter --paths` lists:
   `c.KbridgeApp.port = 9999` (`kbridge --generate-config` writes one that explains them all, and
   `--config` names another one);
3. by an environment variable with the setting's name in capitals: `KBRIDGE_PORT=9999`,
   `KBRIDGE_MAX_KERNELS=4`. Lists and tables have commas between their items:
   `KBRIDGE_POOL=python3=2,ir=1`. These are the settings of the first three classes below, except
   `token`: a server takes it from `JUPYTER_TOKEN` or `JUPYTER_TOKEN_FILE`, while `KBRIDGE_TOKEN`
   and `KBRIDGE_URL` are those of [clients](client.md);
4. by an environment variable of the kernel gateway, where the last column names one.

The server does not start if a setting or option does not exist, a config file has an error in it,
or the file of `--config` is missing. Sections for other programs are allowed in the file that all
Jupyter programs share, `jupyter_config.py`. Variables that begin with `KG_` and are not named here
cause a warning, and so do those that begin with `KBRIDGE_` and resemble the name of a setting. The
variables that Kubernetes sets for a service named `kbridge` have no effect.

`--debug` and `--log-level` select how much is logged, as in every Jupyter program; `logging_config`
takes a dictionary for `logging.config`, which is merged with kbridge's own.

"computed": the default is computed at the start; the description says how.
"""
_GATEWAY = """\
## Jupyter Kernel Gateway

Every setting of the gateway 3.0, by its name in the gateway (`--KernelGatewayApp.port=9999`, or
`c.KernelGatewayApp.port = 9999` in a config file) or its environment variable. `kbridge` and
[`kbridge kernelgateway`](kernel-gateway.md) accept them all. A dash: accepted, without an effect in
kbridge; "the default": any other value is refused.
"""
# The introduction of each class, in the order of the page.
_ABOUT = {
    "KbridgeApp": "The server: its address, authentication, and limits of connections.",
    "BridgeKernelManager": "The kernels: their number, lifetime, environment and files.",
    "ZMQChannelsWebsocketConnection": "Each websocket, and limits on the output of kernels.",
    "AttachApp": "`kbridge attach`, in addition to the settings of a server.",
    "KernelGatewayApp": "`kbridge kernelgateway`, in addition to the settings of a server.",
    "ListApp": "`kbridge list`.",
    "RestartApp": "`kbridge restart`.",
    "StatusApp": "`kbridge status`.",
    "StopApp": "`kbridge stop`.",
    "HealthApp": "`kbridge health`.",
    "RunApp": "`kbridge run`.",
    "LogsApp": "`kbridge logs`.",
    "McpApp": "`kbridge mcp`.",
    "KbridgeExtension": "The [extension for Jupyter Server](jupyter.md), in its configuration.",
    "SlurmProvisioner": "Kernels as [Slurm jobs](slurm.md): defaults for all kernelspecs.",
    "ConnectionFileMixin": "For programs that use `kbridge.connect`: an object with a connection"
    " file. The server does not use these settings.",
}
_WIDTH = 96
# Settings that every Jupyter program has, and that users rarely change.
_FOREIGN = ("traitlets.", "jupyter_core.")

_Settings = list[tuple[str, TraitType[Any, Any]]]


def settings_page() -> str:
    """Return the page, in Markdown."""
    parts = [_INTRODUCTION]
    for cls, settings in _documented():
        rows = "\n".join(_row(cls, name, trait) for name, trait in settings)
        parts.append(
            f"## {cls.__name__}\n\n{_ABOUT[cls.__name__]}\n\n"
            f"| setting | default | meaning | also |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    rows = "\n".join(
        f"| `{s.trait}` | {_code(s.name)} | {_target(s)} |" for s in gateway_settings.SETTINGS
    )
    parts.append(f"{_GATEWAY}\n| gateway | variable | kbridge |\n| --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)


def config_page() -> str:
    """Return a config file of the server that shows all defaults, commented out."""
    lines = [
        "# Configuration file for kbridge. Every line that begins with `# c.` shows a default.",
        "# `...` stands for a default that is computed at the start; replace it by a value.",
        "",
        "c = get_config()  # noqa",
    ]
    for cls in (KbridgeApp, *KbridgeApp.classes):
        lines += ["", "", f"# -- {cls.__name__}: {_ABOUT[cls.__name__]}"]
        for name, trait in _settings(cls):
            help_text = re.sub(r"\s+", " ", trait.help).strip()
            value = "..." if is_computed(cls, name) else trait.default_value_repr()
            lines += [
                "",
                *textwrap.wrap(help_text, _WIDTH, initial_indent="## ", subsequent_indent="#  "),
            ]
            lines.append(f"# c.{cls.__name__}.{name} = {value}")
    return "\n".join(lines) + "\n"


def _documented() -> Iterator[tuple[type[Configurable], _Settings]]:
    """Yield all classes with settings, each with the settings that no class before it has."""
    from kbridge.connect.mixin import ConnectionFileMixin
    from kbridge.jupyter.extension import KbridgeExtension
    from kbridge.server.cli.attach import AttachApp
    from kbridge.server.cli.commands import ListApp, StopApp
    from kbridge.server.cli.health import HealthApp
    from kbridge.server.cli.kernelgateway import KernelGatewayApp
    from kbridge.server.cli.mcp import McpApp
    from kbridge.server.cli.restart import RestartApp
    from kbridge.server.cli.run import ClientCommand, LogsApp, RunApp
    from kbridge.server.cli.status import StatusApp
    from kbridge.slurm.provisioner import SlurmProvisioner

    for cls in (KbridgeApp, *KbridgeApp.classes):
        yield cls, _settings(cls)
    for cls in (
        AttachApp,
        KernelGatewayApp,
        ListApp,
        RestartApp,
        StopApp,
        HealthApp,
        RunApp,
        LogsApp,
        McpApp,
        StatusApp,
        KbridgeExtension,
    ):
        owners = (cls, ClientCommand)
        yield cls, [(name, trait) for name, trait in _settings(cls) if trait.this_class in owners]
    yield SlurmProvisioner, _settings(SlurmProvisioner)
    yield ConnectionFileMixin, _settings(ConnectionFileMixin)


def _settings(cls: type[Configurable]) -> _Settings:
    """Return the traits of a class that kbridge or jupyter_client define for it."""
    traits = cls.class_traits(config=True)
    return sorted(
        (name, trait)
        for name, trait in traits.items()
        if not str(getattr(trait.this_class, "__module__", "")).startswith(_FOREIGN)
    )


def _row(cls: type[Configurable], name: str, trait: TraitType[Any, Any]) -> str:
    setting = f"{cls.__name__}.{name}"
    aliases = getattr(cls, "aliases", KbridgeApp.aliases)
    also = [f"`--{alias}`" for alias, target in aliases.items() if target == setting]
    if cls in (KbridgeApp, *KbridgeApp.classes):
        also += [f"`{v.name}`" for v in gateway_settings.VARIABLES if v.setting == setting]
    return f"| `{name}` | {_default(cls, name, trait)} | {_meaning(trait)} | {', '.join(also)} |"


def _target(setting: gateway_settings.Setting) -> str:
    if setting.setting:
        return f"`{setting.setting}`"
    return "-" if setting.convert is gateway_settings.ignored else "the default"


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


def _default(cls: type[Configurable], name: str, trait: TraitType[Any, Any]) -> str:
    """Return a default that is the same on every machine."""
    return "computed" if is_computed(cls, name) else f"`{_cell(trait.default_value_repr())}`"


def _meaning(trait: TraitType[Any, Any]) -> str:
    """Return the help on one line, without environment variables, which have their own column."""
    return _cell(re.sub(r"\s+", " ", re.sub(r"\s*\(KG_\w+\)", "", trait.help)).strip())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(settings_page())
