"""The known settings include those of provisioners of other packages."""

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import pytest
from jupyter_client.provisioning import KernelProvisionerBase
from traitlets import Int
from traitlets.config import Config, LoggingConfigurable

from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.options import unknown_sections


class RemoteBase(KernelProvisionerBase):  # type: ignore[misc]
    """The base of a package's provisioners."""

    limit = Int(0).tag(config=True)


class Remote(RemoteBase):
    """A provisioner."""


class Listener(LoggingConfigurable):
    """A configurable class of the same package that is not a provisioner."""

    port = Int(0).tag(config=True)


class _Point:
    """An entry point."""

    def __init__(self, found: object) -> None:
        self._found = found

    def load(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (RemoteBase, Remote, Listener):
        monkeypatch.setattr(cls, "__module__", "others.remote")
    monkeypatch.setitem(sys.modules, "others.remote", ModuleType("others.remote"))
    points = [_Point(ImportError("broken")), _Point(Remote)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("section", ["Remote.limit", "RemoteBase.limit", "Listener.port"])
def test_settings_of_a_package_with_provisioners(section: str) -> None:
    name, _, trait = section.partition(".")
    assert unknown_sections(Config({name: {trait: 1}}), KbridgeApp, ()) == []
    [told] = unknown_sections(Config({name: {"nosuch": 1}}), KbridgeApp, ())
    assert told.startswith(f"there is no setting {name}.nosuch")


@pytest.mark.usefixtures("installed")
def test_settings_of_unknown_classes_are_refused() -> None:
    [told] = unknown_sections(Config({"Remot": {"limit": 1}}), KbridgeApp, ())
    assert told.startswith("there are no settings Remot.*")


@pytest.mark.parametrize("section", ["Listener", "Remote", "ListedApp"])
def test_classes_that_are_only_loaded_do_not_count(section: str) -> None:
    assert unknown_sections(Config({section: {"port": 1}}), KbridgeApp, ())


def test_settings_below_a_class_that_a_setting_names() -> None:
    content = {"BridgeKernelManager": {"kernel_spec_manager_class": Listener}}
    config = Config({**content, "Listener": {"port": 1}})
    assert unknown_sections(config, KbridgeApp, ()) == []
    config = Config({"BridgeKernelManager": {"kernel_spec_manager_class": "no.such.Class"}})
    assert unknown_sections(config, KbridgeApp, ()) == []
