import os

import pytest

from kbridge.errors import InvalidRequest
from kbridge.kernels.lifecycle.launchable import check_launchable, is_passable

ARGV = ["python", "-m", "kernel", "{connection_file}"]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("é🐍\x01\n", True),
        ("\udc80", True),  # the form of a file name that is not UTF-8 in Python
        ("a\0b", False),
        ("\ud800", False),
    ],
)
def test_is_passable(text, passes):
    assert is_passable(text) is passes


@pytest.mark.parametrize(
    ("argv", "env"), [(ARGV, {}), (ARGV, dict(os.environ)), ([], {"A": "x" * 100_000})]
)
def test_what_the_system_takes(argv, env):
    check_launchable("k", argv, env)


@pytest.mark.parametrize(
    ("argv", "env", "reason"),
    [
        ([*ARGV, 5], {}, "Argument 4 of the kernelspec 'k' is not a string"),
        ([*ARGV, None], {}, "Argument 4 of the kernelspec 'k' is not a string"),
        (["a\0"], {}, "Argument 0 of the kernelspec 'k' holds a NUL or a lone surrogate"),
        (ARGV, {"A=B": "x"}, "'A=B' is not the name of a variable"),
        (ARGV, {"": "x"}, "'' is not the name of a variable"),
        (ARGV, {"A": 5}, "The variable 'A' is not a string"),
        (ARGV, {"A": "\ud800"}, "The variable 'A' holds a NUL or a lone surrogate"),
        (ARGV, {"\ud800": "a"}, r"The variable '\\ud800' holds"),
        (ARGV, {"A": "x" * 200_000}, "The variable 'A' has 200002 bytes; the system passes 131071"),
        (ARGV, {f"A{i}": "x" * 100_000 for i in range(200)}, "The command and the environment"),
    ],
)
def test_what_it_does_not_take_is_named(argv, env, reason):
    with pytest.raises(InvalidRequest, match="^" + reason):
        check_launchable("k", argv, env)
