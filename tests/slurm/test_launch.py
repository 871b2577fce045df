"""The command, the environment and the keys of a kernel on a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from kbridge.errors import SetupError
from kbridge.slurm.encryption import choose_encryption, connection_keys, trusted
from kbridge.slurm.launch import kernel_argv, kernel_env
from tests.support.certificate import self_signed


def test_the_path_of_the_connection_file_is_left_to_the_node() -> None:
    argv = ["python", "{prefix}/x", "{connection_file}", "{unknown}", "-c", "{'a': 1}"]
    values = {"prefix": "/opt", "connection_file": "/here"}
    assert kernel_argv(argv, values) == [
        *("python", "/opt/x", "{connection_file}", "{unknown}", "-c", "{'a': 1}")
    ]


def test_variables_of_the_server_stay_here() -> None:
    server = {"PATH": "/here", "HOME": "/root", "OF_SPEC": "x"}
    env = {**server, "KERNEL_X": "1", "PATH": "/changed", "JPY_PARENT_PID": "7"}
    assert kernel_env(env, server, {"OF_SPEC": "x"}) == {
        "KERNEL_X": "1",
        "PATH": "/changed",
        "OF_SPEC": "x",
    }


def manager_of(supported: Any, policy: str = "disabled") -> AsyncKernelManager:
    class Manager(AsyncKernelManager):
        kernel_spec = KernelSpec(metadata={"supported_encryption": supported})

    return Manager(transport_encryption=policy)


@pytest.mark.parametrize(
    ("supported", "policy", "wish", "encrypted"),
    [
        (["curve"], "disabled", "auto", True),
        (["curve"], "disabled", "off", False),
        (["curve"], "disabled", "", False),
        (["curve"], "auto", "", True),
        (["curve"], "auto", "off", False),
        (["curve"], "required", "off", True),
        (["curve"], "disabled", "required", True),
        ([], "auto", "auto", False),
    ],
)
def test_when_the_traffic_is_encrypted(
    supported: list[str], policy: str, wish: str, encrypted: bool
) -> None:
    manager = manager_of(supported, policy)
    warning = choose_encryption(manager, None, wish)
    assert ("curve_secretkey" in connection_keys(manager)) is encrypted
    assert ("not encrypted" in warning) is not encrypted


def test_the_keys_stay_for_a_restart() -> None:
    manager = manager_of(["curve"])
    choose_encryption(manager, None, "auto")
    before = connection_keys(manager)
    choose_encryption(manager, None, "auto")
    assert connection_keys(manager) == before


@pytest.mark.parametrize(("policy", "wish"), [("required", ""), ("disabled", "required")])
def test_a_kernel_without_support_is_refused_where_encryption_is_required(
    policy: str, wish: str
) -> None:
    with pytest.raises(SetupError, match="supported_encryption"):
        choose_encryption(manager_of([], policy), None, wish)


def test_jobs_get_certificates_and_no_key(tmp_path: Path) -> None:
    made = self_signed(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(made.key.read_bytes() + made.cert.read_bytes())
    text = trusted(str(both), "")
    assert text == made.cert.read_text()
    assert trusted(str(both), str(made.cert)) == text
    assert trusted("", "") is None
    for path in (made.key, tmp_path / "missing.pem"):
        with pytest.raises(SetupError, match=path.name):
            trusted(str(path), "")
