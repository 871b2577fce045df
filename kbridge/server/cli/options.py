"""Refuses options and settings that do not exist.

traitlets only warns about them. That is not safe for a server: a token under a misspelled name
leaves the server with another token, or without one. `CheckedApp` exits instead, and names the
setting that was probably meant.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp
from traitlets import TraitError
from traitlets.config import Application, Config, Configurable
from traitlets.config.application import catch_config_error
from traitlets.config.loader import ArgumentError, KVArgParseConfigLoader

__all__ = ["CheckedApp", "is_computed", "nearest", "unknown_sections", "unknown_traits"]

# The config file that all Jupyter programs share; its sections may be for any of them.
_SHARED = "jupyter_config"
# Classes that may have a section although the command line does not know them: class, module.
_ELSEWHERE = {
    "AttachApp": "kbridge.server.cli.attach",
    "KernelGatewayApp": "kbridge.server.cli.kernelgateway",
    "ListApp": "kbridge.server.cli.commands",
    "StopApp": "kbridge.server.cli.commands",
    "CompletionApp": "kbridge.server.cli.completion",
    "HealthApp": "kbridge.server.cli.health",
    "StatusApp": "kbridge.server.cli.status",
    "LogsApp": "kbridge.server.cli.run",
    "McpApp": "kbridge.server.cli.mcp",
    "RunApp": "kbridge.server.cli.run",
    "ConnectionFileMixin": "jupyter_client.connect",
    "LocalPortCache": "jupyter_client.connect",
    "KernelManager": "jupyter_client.manager",
    "AsyncKernelManager": "jupyter_client.manager",
    "IOLoopKernelManager": "jupyter_client.ioloop",
    "AsyncIOLoopKernelManager": "jupyter_client.ioloop",
    "KernelRestarter": "jupyter_client.restarter",
    "KernelSpecManager": "jupyter_client.kernelspec",
    "Session": "jupyter_client.session",
    "KernelProvisionerBase": "jupyter_client.provisioning",
    "KernelProvisionerFactory": "jupyter_client.provisioning",
    "LocalProvisioner": "jupyter_client.provisioning",
    "SlurmProvisioner": "kbridge.slurm",
}
# Packages whose other classes are not used by this program.
_COMMON = {"jupyter_client", "jupyter_core", "kbridge", "traitlets"}


class _Parser(KVArgParseConfigLoader.parser_class):  # type: ignore[valid-type, misc]
    """Reports a mistake in one line, where argparse prints every option first."""

    def error(self, message: str) -> Any:
        raise ArgumentError(message)


class _Loader(KVArgParseConfigLoader):
    """Refuses options that do not exist, and suggests the nearest one."""

    parser_class = _Parser

    def _parse_args(self, args: Sequence[str]) -> None:
        known = [*self.aliases, *self.flags]
        for arg in args:
            if arg == "--":
                break
            name = arg.removeprefix("--").split("=", maxsplit=1)[0]
            if arg.startswith("--") and "." not in name and name not in known:
                plain = {k: f"--{k}" for k in known}
                near = nearest(name.replace("_", "-"), plain) or nearest(name, plain)
                raise ArgumentError(f"there is no option --{name}{near}; see --help-all")
        super()._parse_args(args)


class CheckedApp(JupyterApp):
    """Base of the commands of kbridge."""

    option_description = "The setting that an option stands for is in brackets."
    subcommand_description = "`{app} COMMAND --help` shows the options of a command."

    # Config files read before the command's own, by name.
    more_config_files: tuple[str, ...] = ()
    # Settings in a config file with an error would be lost silently.
    raise_config_file_errors = True
    # True while the config file that all Jupyter programs share is read.
    reads_shared = False

    def migrate_config(self) -> None:
        """Do nothing: there are no files of IPython 3 to migrate."""

    def emit_alias_help(self) -> Generator[str, None, None]:
        """Yield the help lines of options, without defaults that are computed at the start."""
        entry: list[str] = []
        for line in super().emit_alias_help():
            entry.append(line)
            if "Equivalent to: [--" in line:
                owner, _, name = line.partition("[--")[2].rstrip("]").partition(".")
                cls = _classes(type(self)).get(owner, type(self))
                computed = is_computed(type(self) if issubclass(type(self), cls) else cls, name)
                yield from (e for e in entry if not (computed and e.strip().startswith("Default:")))
                entry = []
        yield from entry

    def update_config(self, config: Config) -> None:
        """Take settings from one source.

        Raises
        ------
        traitlets.TraitError
            If a class of this command does not have one of them.
        """
        if unknown := unknown_traits(config, type(self)):
            raise TraitError("; ".join(unknown))
        super().update_config(config)

    def _create_loader(
        self, argv: list[str] | None, aliases: Any, flags: Any, classes: Any
    ) -> KVArgParseConfigLoader:
        return _Loader(argv, aliases, flags, classes=classes, log=self.log)

    @catch_config_error
    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Read the config files, the one with the lowest precedence first, and check all settings.

        Raises
        ------
        traitlets.TraitError
            If the file that `config_file` names is missing, or a file has an error in it or sets an
            unknown setting.
        """
        del suppress_errors
        given = set(self.config)
        self.reads_shared = True
        try:
            self._load(_SHARED, self.config_file_paths)
        finally:
            self.reads_shared = False
        shared = set(self.config) - given
        if self.config_file:
            path = Path(self.config_file).expanduser()
            if not any(
                p.is_file() for p in (path, *(path.with_suffix(s) for s in _suffixes(path)))
            ):
                raise TraitError(f"there is no config file {self.config_file}")
            self._load(path.name, [str(path.parent)])
        else:
            for name in (*self.more_config_files, self.config_file_name):
                if name and name != _SHARED:
                    self._load(name, self.config_file_paths)
        if unknown := unknown_sections(self.config, type(self), ignore=shared):
            raise TraitError("; ".join(unknown))

    def _load(self, name: str, path: Iterable[str]) -> None:
        try:
            Application.load_config_file(self, name, path=list(path))
        except TraitError:
            raise
        except Exception as error:  # noqa: BLE001  # a config file is a program
            where = getattr(error, "filename", None) or _place(error) or name
            raise TraitError(f"config file {where}: {type(error).__name__}: {error}") from None


def is_computed(cls: type[Any], name: str) -> bool:
    """True if the default of a setting is computed when it is read."""
    return any(
        getattr(vars(base).get(method), "trait_name", name) == name
        for base in cls.__mro__
        for method in (f"_{name}_default", f"_default_{name}")
        if method in vars(base)
    )


def unknown_traits(config: Config, app: type[Application]) -> list[str]:
    """Return an error message for each setting that a class of this command does not have."""
    classes = _classes(app)
    found = []
    for section, content in config.items():
        if isinstance(content, Config) and section in classes:
            found += _unknown_in(classes[section], content, classes)
    return found


def unknown_sections(config: Config, app: type[Application], ignore: Iterable[str]) -> list[str]:
    """Return a sentence about each section that belongs to no class.

    Parameters
    ----------
    config : Config
        Everything that is set.
    app : type
        The command; its `classes` are known by name, and their bases.
    ignore : iterable of str
        Sections that may belong to another program.
    """
    classes = _classes(app)
    found = []
    for section, content in config.items():
        if section in classes or section in ignore:
            continue
        if not isinstance(content, Config):
            owners = [c for c in (app, *app.classes) if section in c.class_trait_names(config=True)]
            hint = f" (did you mean {owners[0].__name__}.{section}?)" if owners else ""
            found.append(f"there is no setting {section}{hint}")
        elif (owner := _elsewhere(section, config)) is not None:
            found += _unknown_in(owner, content, classes)
        else:
            known = {name: f"{name}.*" for name in (*classes, *_ELSEWHERE)}
            found.append(f"there are no settings {section}.*{nearest(section, known)}")
    return found


def _classes(app: type[Application]) -> dict[str, type[Configurable]]:
    return {base.__name__: base for cls in (app, *app.classes) for base in _bases(cls)}


def _unknown_in(
    owner: type[Configurable], content: Config, classes: dict[str, type[Configurable]]
) -> list[str]:
    traits = owner.class_trait_names(config=True)
    return [
        f"there is no setting {owner.__name__}.{name}{_hint(name, owner, classes)}"
        for name, value in content.items()
        # A nested section is for objects below this one.
        if name not in traits and not (name[:1].isupper() and isinstance(value, Config))
    ]


def _hint(name: str, owner: type[Configurable], classes: dict[str, type[Configurable]]) -> str:
    everywhere = {
        trait: f"{cls.__name__}.{trait}"
        for cls in (*classes.values(), owner)
        for trait in cls.class_trait_names(config=True)
    }
    if name in everywhere:
        return f" (did you mean {everywhere[name]}?)"
    here = {trait: f"{owner.__name__}.{trait}" for trait in owner.class_trait_names(config=True)}
    return nearest(name, here) or nearest(name, everywhere)


def _bases(cls: type[Any]) -> list[type[Configurable]]:
    """Return the classes whose config sections apply to `cls`, the most general first."""
    return [c for c in reversed(cls.__mro__) if issubclass(c, Configurable)]


def _elsewhere(section: str, config: Config) -> type[Configurable] | None:
    """Return a class that is loaded later, or is part of another package; None if not found."""
    if module := _ELSEWHERE.get(section):
        found: type[Configurable] | None = getattr(importlib.import_module(module), section, None)
        return found
    loaded = [*_named_classes(config), *_provisioners()]
    # The section may belong to one of their base classes, or to an object that they create.
    modules = {base.__module__.partition(".")[0] for cls in loaded for base in _bases(cls)}
    for cls in _subclasses(Configurable):
        if cls.__name__ == section and cls.__module__.partition(".")[0] in modules - _COMMON:
            return cls
    return next((c for cls in loaded for c in _bases(cls) if c.__name__ == section), None)


def _named_classes(config: Config) -> list[type[Configurable]]:
    """Return the classes that settings such as `kernel_spec_manager_class` name."""
    from traitlets import import_item

    found = []
    for content in config.values():
        for name, value in content.items() if isinstance(content, Config) else ():
            if name.endswith("_class"):
                try:
                    cls = import_item(value) if isinstance(value, str) else value
                except Exception:  # noqa: BLE001, S112 - reported where the class is used
                    continue
                if isinstance(cls, type) and issubclass(cls, Configurable):
                    found.append(cls)
    return found


def _provisioners() -> list[type[Configurable]]:
    """Return the classes of all installed provisioners that can be imported."""
    from importlib.metadata import entry_points

    found = []
    for point in entry_points(group="jupyter_client.kernel_provisioners"):
        try:
            cls = point.load()
        except Exception:  # noqa: BLE001, S112 - a broken package; perhaps no kernelspec names it
            continue
        if isinstance(cls, type) and issubclass(cls, Configurable):
            found.append(cls)
    return found


def _subclasses(cls: type[Any]) -> set[type[Any]]:
    """Return all loaded subclasses of `cls`."""
    below = set(cls.__subclasses__())
    return below.union(*map(_subclasses, below))


def nearest(name: str, known: dict[str, str]) -> str:
    """Return a question that names the known name nearest to a wrong one; empty if none is near."""
    import difflib  # only needed after a mistake

    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {known[near[0]]}?)" if near else ""


def _suffixes(path: Path) -> tuple[str, ...]:
    """Return the suffixes that the name of a config file may lack."""
    return () if path.suffix else (".py", ".json")


def _place(error: BaseException) -> str:
    """Return the file and line of the code that raised an error in a config file; empty if none."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            return f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return ""
