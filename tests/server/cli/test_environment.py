from typing import Any

import pytest
from traitlets import TraitError

from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.environment import read, variables

CLASSES: list[Any] = [KbridgeApp, BridgeKernelManager, ZMQChannelsWebsocketConnection]


@pytest.mark.parametrize(
    ("name", "value", "setting", "expected"),
    [
        ("KBRIDGE_PORT", "9999", "KbridgeApp.port", 9999),
        ("KBRIDGE_BASE_URL", "/a/", "KbridgeApp.base_url", "/a/"),
        ("KBRIDGE_LIST_KERNELS", "false", "KbridgeApp.list_kernels", False),
        ("KBRIDGE_LOCAL_HOSTNAMES", "a, b", "KbridgeApp.local_hostnames", ["a", "b"]),
        ("KBRIDGE_LOCAL_HOSTNAMES", "['a', 'b']", "KbridgeApp.local_hostnames", ["a", "b"]),
        ("KBRIDGE_LOCAL_HOSTNAMES", "", "KbridgeApp.local_hostnames", []),
        ("KBRIDGE_COOKIE_SECRET", "s", "KbridgeApp.cookie_secret", b"s"),
        ("KBRIDGE_LOG_LEVEL", "DEBUG", "KbridgeApp.log_level", "DEBUG"),
        ("KBRIDGE_MAX_KERNELS", "4", "BridgeKernelManager.max_kernels", 4),
        ("KBRIDGE_POOL", "a=1,b=2", "BridgeKernelManager.pool", {"a": 1, "b": 2}),
        (
            "KBRIDGE_JOURNAL_LIMIT",
            "1024",
            "ZMQChannelsWebsocketConnection.journal_limit",
            1024,
        ),
    ],
)
def test_values(name: str, value: str, setting: str, expected: Any) -> None:
    cls, trait = setting.split(".")
    assert read({name: value}, CLASSES) == ({cls: {trait: expected}}, {})


@pytest.mark.parametrize(
    ("name", "value"), [("KBRIDGE_PORT", "http"), ("KBRIDGE_LIST_KERNELS", "perhaps")]
)
def test_values_that_are_not_valid(name: str, value: str) -> None:
    with pytest.raises(TraitError, match=name) as caught:
        read({name: value}, CLASSES)
    assert value not in str(caught.value)


def test_variables_of_clients_tests_and_kubernetes_have_no_effect() -> None:
    environ = {
        "KBRIDGE_TOKEN": "t",
        "KBRIDGE_URL": "http://host/",
        "KBRIDGE_PURE": "1",
        "KBRIDGE_TEST_LINK": "zmtp",
        "KBRIDGE_PORT": "tcp://10.0.0.1:8888",
        "KBRIDGE_PORT_8888_TCP": "tcp://10.0.0.1:8888",
        "KBRIDGE_SERVICE_HOST": "10.0.0.1",
        "PORT": "1",
        "KBRIDGE": "x",
    }
    assert read(environ, CLASSES) == ({}, {})


def test_misspelled_variables_are_found() -> None:
    environ = {"KBRIDGE_MAX_KERNEL": "3", "KBRIDGE_UNLIKE_ANYTHING_ELSE": "3"}
    assert read(environ, CLASSES) == ({}, {"KBRIDGE_MAX_KERNEL": "KBRIDGE_MAX_KERNELS"})


def test_settings_of_all_jupyter_programs_are_not_variables() -> None:
    known = variables(CLASSES)
    assert "KBRIDGE_LOG_LEVEL" in known
    assert not {"KBRIDGE_CONFIG_FILE", "KBRIDGE_GENERATE_CONFIG", "KBRIDGE_TOKEN"} & set(known)
