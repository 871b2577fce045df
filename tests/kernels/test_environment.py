from pathlib import Path

import pytest

from kbridge.errors import InvalidRequest
from kbridge.kernels.environment import kernel_environment, working_dir

PROCESS = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "KG_AUTH_TOKEN": "s", "JUPYTER_TOKEN": "s"}

CASES = [
    # requested, allowed, inherited, expected besides KERNEL_GATEWAY
    (None, [], [], {"PATH": "/bin", "HOME": "/h", "LANG": "C"}),
    ({}, [], [], {"PATH": "/bin"}),
    ({}, [], ["HOME", "NONE"], {"PATH": "/bin", "HOME": "/h"}),
    ({}, [], ["KG_AUTH_TOKEN"], {"PATH": "/bin"}),
    ({"KERNEL_A": "1", "B": "2", "C": "3"}, ["C"], [], {"PATH": "/bin", "KERNEL_A": "1", "C": "3"}),
    ({"PATH": "/evil", "LD_PRELOAD": "x"}, [], [], {"PATH": "/bin"}),
    ({"PATH": "/mine"}, ["PATH"], [], {"PATH": "/mine"}),
    ({"KERNEL_A": 1, "KERNEL_B": None, "KERNEL_C": "a\0b"}, [], [], {"PATH": "/bin"}),
    ({"KERNEL_A=B": "1", "KERNEL_\0": "1", "": "1"}, [""], [], {"PATH": "/bin"}),
    ({"KERNEL_GATEWAY": "0"}, [], [], {"PATH": "/bin"}),
]


@pytest.mark.parametrize(("requested", "allowed", "inherited", "expected"), CASES)
def test_kernel_environment(requested, allowed, inherited, expected):
    env = kernel_environment(PROCESS, requested, allowed=allowed, inherited=inherited)
    assert env == {**expected, "KERNEL_GATEWAY": "1"}


def test_an_environment_is_an_object():
    with pytest.raises(InvalidRequest, match="env"):
        kernel_environment(PROCESS, ["A=1"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, "."),
        ("", "."),
        ("/", "."),
        ("a/b", "a/b"),
        ("/a/b", "a/b"),
        ("a/b/nb.ipynb", "a/b"),
        ("a/none/deeper/nb.ipynb", "a"),
        ("none.ipynb", "."),
        ("../..", "."),
        ("a/../../x", "."),
        ("a/../a/b", "a/b"),
        ("a\0b", "."),
        ("x" * 5000, "."),
    ],
)
def test_working_dir(tmp_path: Path, path, expected):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert working_dir(tmp_path, path) == tmp_path / expected


def test_a_path_is_a_string(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="path"):
        working_dir(tmp_path, 5)  # type: ignore[arg-type]
