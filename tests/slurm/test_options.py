"""Resources: what a kernelspec and a request may ask for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidRequest, SetupError
from kbridge.slurm.options import (
    RESOURCES,
    Allowance,
    configured,
    extra_options,
    requested_resources,
    sbatch_options,
    within_limits,
)

ALL = Allowance.parse(list(RESOURCES))
GOOD = [
    ("partition", "gpu,cpu_2"),
    ("time", "90"),
    ("time", "90:30"),
    ("time", "1:30:00"),
    ("time", "2-12"),
    ("time", "2-12:30:00"),
    ("memory", "16G"),
    ("memory", "4000"),
    ("cpus", "8"),
    ("gpus", "2"),
    ("gpus", "a100:2"),
    ("gres", "gpu:a100:1,fast-disk"),
    ("account", "physics"),
    ("qos", "normal"),
    ("constraint", "[rack1|rack2]&ib"),
    ("reservation", "course+2"),
    ("nodelist", "n[1-3,7],m2"),
    ("licenses", "matlab@flex:2"),
]
BAD = [
    "",
    "-x",
    "--wrap=id",
    "a b",
    "a\nb",
    "a\n#SBATCH --uid=0",
    "$(id)",
    "`id`",
    "a;b",
    "a'b",
    'a"b',
    "a\0b",
    "../x",
    "/x",
    "ä",
    "a=b",
    "x" * 257,
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_values_of_each_form_become_one_argument(name: str, value: str) -> None:
    env = {f"KERNEL_SLURM_{name.upper()}": value, "KERNEL_OTHER": "x"}
    found = requested_resources(env, ALL)
    assert found == {name: value}
    assert sbatch_options(found) == [f"{RESOURCES[name].option}={value}"]


@pytest.mark.parametrize("name", RESOURCES)
@pytest.mark.parametrize("value", BAD)
def test_nothing_else_is_accepted(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"KERNEL_SLURM_{name.upper()}"):
        requested_resources({f"KERNEL_SLURM_{name.upper()}": value}, ALL)
    with pytest.raises(SetupError, match=name):
        configured(name, value)


@given(st.sampled_from(sorted(RESOURCES)), st.text(max_size=30))
def test_no_value_becomes_another_option_or_a_line(name: str, value: str) -> None:
    try:
        found = requested_resources({f"KERNEL_SLURM_{name.upper()}": value}, ALL)
    except InvalidRequest:
        return
    [argument] = sbatch_options(found)
    assert argument.isascii()
    assert argument.isprintable()
    assert not set(argument) & set(" \"'$`;\\/<>")
    assert argument.split("=", 1) == [RESOURCES[name].option, value]
    assert not value.startswith("-")


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        ({"time": "2:00:00"}, ["120", "2:00:00", "119:59"], ["121", "0-3", "2:00:01", "0"]),
        ({"memory": "16G"}, ["16384", "16G", "1"], ["17G", "1T", "16385"]),
        ({"cpus": 4}, ["1", "4"], ["5", "0"]),
        ({"gpus": 2}, ["2", "a100:1"], ["a100:3", "3"]),
        ({"partition": ["cpu", "gpu"]}, ["cpu", "gpu"], ["cpu,gpu", "other"]),
        ({"account": None}, ["any"], []),
    ],
)
def test_limits_of_the_kernelspec(limit: dict[str, Any], good: list[str], bad: list[str]) -> None:
    [name] = limit
    allowance = Allowance.parse(limit)
    for value in good:
        assert requested_resources({f"KERNEL_SLURM_{name.upper()}": value}, allowance)
    for value in bad:
        with pytest.raises(InvalidRequest):
            requested_resources({f"KERNEL_SLURM_{name.upper()}": value}, allowance)


def test_the_error_names_what_is_allowed() -> None:
    allowance = Allowance.parse(["time"])
    with pytest.raises(InvalidRequest, match="it allows: KERNEL_SLURM_TIME"):
        requested_resources({"KERNEL_SLURM_ACCOUNT": "x"}, allowance)
    with pytest.raises(InvalidRequest, match="it allows: none"):
        requested_resources({"KERNEL_SLURM_UID": "0"}, Allowance.parse([]))


@pytest.mark.parametrize(
    "allow", ["time", 1, ["uid"], {"uid": None}, {"time": "x"}, {"account": "x"}, {"gpus": ["-1"]}]
)
def test_faults_of_a_kernelspec_are_named(allow: Any) -> None:
    with pytest.raises(SetupError):
        Allowance.parse(allow)


def test_numbers_of_a_kernelspec_need_no_quotes() -> None:
    assert configured("cpus", 4) == "4"
    with pytest.raises(SetupError):
        configured("cpus", True)


@pytest.mark.parametrize(
    ("resources", "limits", "expected"),
    [
        ({}, {}, {}),
        ({"memory": "900G", "cpus": "99"}, {}, {"memory": "900G", "cpus": "99"}),
        ({}, {"CPUS": "2"}, {}),
        ({"cpus": "2"}, {"CPUS": "2"}, {"cpus": "2"}),
        ({"cpus": "1"}, {"CPUS": "500m"}, {"cpus": "1"}),
        ({}, {"MEMORY": "4Gi"}, {"memory": "4096M"}),
        ({"memory": "4G"}, {"MEMORY": "4Gi"}, {"memory": "4G"}),
        ({"memory": "512"}, {"MEMORY": "4Gi"}, {"memory": "512"}),
        ({}, {"MEMORY": "1000"}, {"memory": "1M"}),
    ],
)
def test_limits_of_the_server(
    resources: dict[str, str], limits: dict[str, str], expected: dict[str, str]
) -> None:
    env = {f"KERNEL_{name}_LIMIT": value for name, value in limits.items()}
    assert within_limits(resources, env) == expected


@pytest.mark.parametrize(
    ("resources", "env", "message"),
    [
        ({"cpus": "3"}, {"KERNEL_CPUS_LIMIT": "2"}, "cpus is 3; KERNEL_CPUS_LIMIT allows 2"),
        ({"memory": "5G"}, {"KERNEL_MEMORY_LIMIT": "4Gi"}, "memory is 5G; .* allows 4096M"),
        ({"memory": "4097"}, {"KERNEL_MEMORY_LIMIT": "4Gi"}, "memory is 4097; .* allows 4096M"),
        ({}, {"KERNEL_MEMORY_LIMIT": "lots"}, "'lots' is not a positive number"),
    ],
)
def test_a_job_that_needs_more_than_the_server_allows(
    resources: dict[str, str], env: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        within_limits(resources, env)


@pytest.mark.parametrize(
    "option",
    ["--requeue", "--array=1-9", "-a1-9", "--clusters=x", "-Mx", "--wrap=id", "x", "", "--"],
)
def test_options_with_which_a_job_would_be_lost_are_refused(option: str) -> None:
    with pytest.raises(SetupError, match="sbatch_options"):
        extra_options(["--exclusive", option])
    assert extra_options(["--exclusive", "-n2"]) == ["--exclusive", "-n2"]
