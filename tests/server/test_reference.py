import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config, Configurable

import kbridge
from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.reference import config_page, settings_page

PAGE = Path(kbridge.__file__).parents[1] / "docs" / "settings.md"
# Defined by jupyter_client, whose versions word them differently.
FOREIGN = ("| `default_kernel_name` |", "| `shared_context` |", "| `use_pending_kernels` |")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(FOREIGN)]


def test_the_page_of_settings_is_up_to_date() -> None:
    """To update it: python -m kbridge.server.reference > docs/settings.md."""
    assert lines(PAGE.read_text()) == lines(settings_page())


def test_every_row_has_a_meaning() -> None:
    page = settings_page().partition("## Jupyter Kernel Gateway")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        assert len(row[2]) > 5, row


def configurables() -> list[type[Configurable]]:
    """Every class of the package that has settings."""
    for module in pkgutil.walk_packages(kbridge.__path__, "kbridge."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(cls: type[Any]) -> set[type[Configurable]]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    return sorted(
        (c for c in below(Configurable) if c.__module__.startswith("kbridge.")),
        key=lambda c: c.__qualname__,
    )


def test_no_setting_of_any_class_is_missing() -> None:
    page = settings_page()
    named = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    ours = {
        name
        for cls in configurables()
        for name, trait in cls.class_traits(config=True).items()
        if str(trait.this_class.__module__).startswith("kbridge.")
    }
    assert len(ours) > 80
    assert ours <= named


def defaults() -> list[tuple[str, str, str]]:
    """Class, setting and value of each line of the config file."""
    return re.findall(r"^# c\.(\w+)\.(\w+) = (.*)$", config_page(), flags=re.MULTILINE)


def uncommented(lines: list[tuple[str, str, str]]) -> Config:
    """Return the configuration of a config file with these lines uncommented."""
    config = Config()
    for owner, name, value in lines:
        exec(f"c.{owner}.{name} = {value}", {"c": config})
    return config


def make(owner: str, config: Config) -> Any:
    if owner == "BridgeKernelManager":
        return BridgeKernelManager(hubs=HubTable(), writer=RegistryWriter(), config=config)
    return CLASSES[owner](config=config)


CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (KbridgeApp, *KbridgeApp.classes)}


@pytest.mark.parametrize("owner", CLASSES)
def test_lines_of_the_config_file_change_nothing(owner: str) -> None:
    """Taken out of their comments as they stand."""
    lines = [line for line in defaults() if line[0] == owner and line[2] != "..."]
    assert len(lines) > 8
    plain, told = make(owner, Config()), make(owner, uncommented(lines))
    assert {n: getattr(told, n) for _, n, _ in lines} == {n: getattr(plain, n) for _, n, _ in lines}


@pytest.mark.parametrize("line", [d for d in defaults() if d[2] == "..."], ids=lambda d: d[1])
def test_a_line_for_a_computed_default_is_refused_as_it_stands(line: tuple[str, str, str]) -> None:
    """The token among them: uncommented, it does not turn authentication off."""
    with pytest.raises(TraitError, match=line[1]):
        make(line[0], uncommented([line]))


def test_the_config_file_has_all_settings_of_kbridge_and_no_others() -> None:
    shown = {(owner, name) for owner, name, _ in defaults()}
    assert {owner for owner, _ in shown} == set(CLASSES)
    for owner, cls in CLASSES.items():
        for name, trait in cls.class_traits(config=True).items():
            if str(trait.this_class.__module__).startswith("kbridge."):
                assert (owner, name) in shown
    assert ("KbridgeApp", "token", "...") in defaults()
    assert config_page().count("\n") < 500
    compile(config_page(), "kbridge_config.py", "exec")
