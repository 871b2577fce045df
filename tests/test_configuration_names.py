"""Names of settings, options and variables that users know keep working; see docs/stability.md.

`configuration_names.txt` lists them. Add a name when a version is released; never remove one
within a major version. docs/settings.md is generated from the code, so a name is there only if the
code accepts it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as JupyterConnection,
)
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from kbridge.connection import ZMQChannelsWebsocketConnection
from kbridge.jupyter import ZMQChannelsWebsocketConnection as ExtensionConnection

HERE = Path(__file__).parent
NAMES = (HERE / "configuration_names.txt").read_text().split()
PAGE = (HERE.parent / "docs" / "settings.md").read_text()


def documented() -> set[str]:
    """Return all names on the page: `Class.trait`, `--option` and `KG_VARIABLE`."""
    found = set(re.findall(r"`([A-Z]\w+\.\w+|--[\w-]+|KG_\w+)`", PAGE))
    for cls, section in re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE):
        found |= {
            f"{cls}.{trait}" for trait in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        }
    return found


def test_every_known_name_is_still_documented() -> None:
    assert set(NAMES) - documented() == set()


def test_the_list_is_sorted_and_covers_each_kind() -> None:
    assert sorted(set(NAMES)) == NAMES
    for name in (
        *("--port", "KG_AUTH_TOKEN", "BridgeKernelManager.cull_idle_timeout"),
        *("MappingKernelManager.cull_idle_timeout", "KernelGatewayApp.auth_token"),
        *("ZMQChannelsWebsocketConnection.iopub_data_rate_limit", "KbridgeExtension.enabled"),
    ):
        assert name in NAMES


@pytest.mark.parametrize("ours", [ZMQChannelsWebsocketConnection, ExtensionConnection])
def test_settings_of_jupyter_servers_connection_exist(ours: Any) -> None:
    theirs = set(JupyterConnection.class_trait_names(config=True))
    assert theirs <= set(ours.class_trait_names(config=True))
    assert ours.__name__ == JupyterConnection.__name__, "the name of the section"


def test_settings_of_jupyter_servers_kernel_manager_are_accepted() -> None:
    own = set(AsyncMappingKernelManager.class_own_traits(config=True))
    known = {n.partition(".")[2] for n in NAMES if n.startswith("MappingKernelManager.")}
    assert own - {"kernel_argv"} <= known


def test_settings_under_all_their_names_reach_the_program(tmp_path: Path) -> None:
    """The loaded configuration has the values, under the names of kbridge."""
    config = {
        "KernelGatewayApp": {"auth_token": "secret"},
        "MappingKernelManager": {"cull_idle_timeout": 60},
        "BridgeKernelManager": {"cull_interval": 30},
        "ZMQChannelsWebsocketConnection": {"iopub_data_rate_limit": 5.0},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "kbridge", "kernelgateway", "--show-config-json"]
    done = subprocess.run(
        [*command, f"--config={file}"], capture_output=True, text=True, env={"KG_PORT": "9999"}
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["KbridgeApp"]["token"] == "secret"
    assert shown["KbridgeApp"]["port"] == 9999
    assert shown["BridgeKernelManager"] == {"cull_idle_timeout": 60, "cull_interval": 30}
    assert shown["ZMQChannelsWebsocketConnection"] == {"iopub_data_rate_limit": 5.0}
