"""Every regular expression of the package takes time linear in the text that it sees.

The table has one row for each. A row is run on hostile texts of one length, and on texts that are
doubled twice: linear time costs four times as much, quadratic time sixteen times.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kbridge
from kbridge.flow import coalesce
from kbridge.kernels.lifecycle import factory, kernel_log, kernel_process
from kbridge.kernels.registry import registry
from kbridge.server import safe_log
from kbridge.server.api import routes
from kbridge.server.auth import access_policy, authenticator
from kbridge.slurm import launch, options
from kbridge.tunnel import ssh_command, supervisor
from kbridge.wire import legacy, outline

ROOT = Path(kbridge.__file__).parent
SLACK = 9.0
"""Maximum ratio of the times for a text that was doubled twice and for the original."""
MEASURABLE = 0.003  # seconds
SIZES = (500, 2_000, 8_000)

USES = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}


class Case(NamedTuple):
    """A function that matches a text, and makers of slow texts from a number of units."""

    run: Callable[[Any], object]
    texts: tuple[Callable[[int], Any], ...]


def units(*parts: str) -> tuple[Callable[[int], str], ...]:
    """Each part repeated n times, and n of its first characters with the rest at the end."""
    return tuple(
        make
        for part in parts
        for make in (
            lambda n, part=part: part * n,
            lambda n, part=part: part * n + "!",
            lambda n, part=part: part[0] * n + part[1:],
        )
    )


# Patterns of secrets are made when the server hides one.
_ENCODED = re.compile("".join(map(safe_log._encodings, "a" * 47 + "b")))


def _ssh(text: str) -> None:
    for read in (ssh_command.server, ssh_command._host, lambda path: ssh_command._path("/" + path)):
        try:
            read(text)
        except ValueError:
            continue


def _stream(text: str) -> None:
    raw = b'{"name": "stdout", "text": "' + text.encode("latin-1", "replace")
    coalesce._TEXT.fullmatch(raw)
    coalesce._TEXT.fullmatch(raw + b'"}')


def _legacy(text: str) -> None:
    for raw in (text, "{" + text, '{"' + text, '{"' + text + '": {}}', '{"channel": 1' + text):
        try:
            legacy.decode(raw)
        except kbridge.errors.KbridgeError:
            continue


def _outline(text: str) -> None:
    for raw in ("{" + text, '{"a": ' + text, '{"a": [' + text, '{"a": {"' + text):
        try:
            for _ in outline.outline(raw, {"header"}):
                pass
        except (ValueError, RecursionError, kbridge.errors.KbridgeError):
            continue


def _resources(text: str) -> None:
    for resource in options.RESOURCES.values():
        resource.pattern.fullmatch(text)


def _route(path: str) -> None:
    for pattern, _ in routes.ROUTES:
        re.fullmatch(pattern, "/api/kernels/" + path)
        re.fullmatch(pattern, "/kernelspecs/" + path)


# Units chosen to slow regular expressions: separators, quotes, escapes, prefixes of a match.
_HARD = units(
    "?token",
    "&token",
    "?a=1&",
    "?token=",
    "?",
    "%3Ftoken",
    "%25",
    "%2525",
    "%2525253F",
    "authorization: ",
    "authorization token ",
    "authorization",
    "cookie: ",
    "cookie'  :",
    "kbridge-",
    "username-a.",
    " ",
    "\t",
    "\x1b[",
    "\x1b[0;",
    "a",
    "%61",
    "%",
    "=",
    "'",
    '"',
    "\\",
    "\\u0000",
    "\\ud800\\udc00",
    "@",
    "[@",
    "a@",
    "::",
    ":a",
    "1",
    "-",
    "a-",
    "/",
    "//:",
    "://",
    "{",
    "[",
    "{}",
    "[{",
    '["',
    '{"a": ',
    ",",
    '"a": 1, ',
    '"a\\',
    "a: ",
    "address already in use ",
    "cannot listen to port: 1",
    "cannot listen to port: ",
    "/?#",
    "token ",
    "https://",
)

TABLE: dict[str, Case] = {
    "tunnel/supervisor.py:_PORT_TAKEN": Case(supervisor._PORT_TAKEN.findall, _HARD),
    "tunnel/supervisor.py:_NUMBER": Case(lambda text: supervisor._NUMBER.sub("", text), _HARD),
    "tunnel/ssh_command.py:_HOST": Case(_ssh, _HARD),
    "tunnel/ssh_command.py:_SERVER": Case(_ssh, _HARD),
    "tunnel/ssh_command.py:_BARE_V6": Case(_ssh, _HARD),
    "tunnel/ssh_command.py:_SPECIAL": Case(_ssh, _HARD),
    "flow/coalesce.py:_HIGH_SURROGATE": Case(
        lambda text: coalesce._HIGH_SURROGATE.match(text.encode()), _HARD
    ),
    "flow/coalesce.py:_LOW_SURROGATE": Case(
        lambda text: coalesce._LOW_SURROGATE.match(text.encode()), _HARD
    ),
    "flow/coalesce.py:_TEXT": Case(_stream, _HARD),
    "kernels/lifecycle/kernel_process.py:_PORT_TAKEN": Case(
        kernel_process._PORT_TAKEN.search, _HARD
    ),
    "kernels/lifecycle/kernel_log.py:_ESCAPES": Case(
        lambda text: kernel_log._ESCAPES.sub("", text), _HARD
    ),
    "kernels/lifecycle/factory.py:_KERNEL_ID": Case(factory._KERNEL_ID.fullmatch, _HARD),
    "kernels/registry/registry.py:_FILE": Case(registry._FILE.fullmatch, _HARD),
    "kernels/registry/registry.py:_PASSWORD": Case(registry.secrets_of, _HARD),
    "kernels/registry/registry.py:_SECRET": Case(registry.secrets_of, _HARD),
    "server/safe_log.py:_OPEN": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_NAME": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_VALUE": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_AUTHORIZATION": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_COOKIES": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_COOKIE": Case(safe_log.scrub, _HARD),
    "server/safe_log.py:_UNPRINTABLE": Case(safe_log.printable, _HARD),
    "server/safe_log.py:hide": Case(lambda text: _ENCODED.sub("", text), _HARD),
    "server/auth/access_policy.py:_HOST": Case(access_policy.parse_host, _HARD),
    "server/auth/access_policy.py:_ORIGIN": Case(access_policy._ORIGIN.fullmatch, _HARD),
    "server/auth/authenticator.py:_AUTHORIZATION": Case(authenticator.parse_authorization, _HARD),
    "server/api/routes.py:ROUTES": Case(_route, _HARD),
    "slurm/options.py:_NAME": Case(_resources, _HARD),
    "slurm/options.py:_GRES": Case(_resources, _HARD),
    "slurm/options.py:_FEATURES": Case(_resources, _HARD),
    "slurm/options.py:_NODES": Case(_resources, _HARD),
    "slurm/options.py:_COUNT": Case(_resources, _HARD),
    "slurm/options.py:_GPUS": Case(_resources, _HARD),
    "slurm/options.py:_MEMORY": Case(_resources, _HARD),
    "slurm/options.py:_TIME": Case(_resources, _HARD),
    "slurm/launch.py:_PLACEHOLDER": Case(lambda text: launch.kernel_argv([text], {}), _HARD),
    "wire/outline.py:_skip_flat": Case(_outline, _HARD),
    "wire/outline.py:_skip_text": Case(_outline, _HARD),
    "wire/outline.py:_skip_scalar": Case(_outline, _HARD),
    "wire/outline.py:_skip_space": Case(_outline, _HARD),
    "wire/legacy.py:_skip_space": Case(_legacy, _HARD),
    "wire/legacy.py:_plain_key": Case(_legacy, _HARD),
}

# These patterns read only the operator's settings and files, and the texts of this package.
OURS = {
    "server/reference.py:_meaning",
    "server/reference.py:config_page",
    "server/auth/credentials.py:_HEX",
    "server/setting_checks.py:_CLUSTER",
    "server/setting_checks.py:_ORIGIN",
    "server/setting_checks.py:_valid_allow_origin_pat",
    "server/setting_checks.py:_valid_sock_mode",
    "server/setting_checks.py:check_host",
    "server/setting_checks.py:check_origins",
    "server/components.py:access_policy",
}


def _calls(path: Path) -> list[str]:
    """Where a module uses `re`: the constant or the function, as the table names it."""
    tree = ast.parse(path.read_text())
    found = []
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [outer.name]
        elif isinstance(outer, ast.Assign | ast.AnnAssign) and outer in tree.body:
            targets = outer.targets if isinstance(outer, ast.Assign) else [outer.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        for node in ast.walk(outer):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "re"
                and node.attr in USES
            ):
                found += [f"{path.relative_to(ROOT)}:{name}" for name in names]
    return found


def test_each_regular_expression_is_in_the_table() -> None:
    used = {name for path in ROOT.rglob("*.py") for name in _calls(path)}
    assert used - OURS - TABLE.keys() == set(), "add a row to TABLE (or OURS) for these"
    assert (TABLE.keys() | OURS) - used - {"server/api/routes.py:ROUTES"} == set(), "these are gone"


def _seconds(run: Callable[[Any], object], text: object, tries: int = 2) -> float:
    best = float("inf")
    for _ in range(tries):
        begin = time.process_time()
        run(text)
        best = min(best, time.process_time() - begin)
    return best


def _growth(case: Case, make: Callable[[int], Any]) -> float:
    """Return the ratio of the times for a text that was doubled twice and for the original."""
    for units in SIZES:
        if _seconds(case.run, make(units), 1) >= MEASURABLE:
            break
    else:
        return 1.0  # quadratic time would be at least ten times as long
    # A machine that is busy may spoil one measurement; quadratic time spoils all of them.
    growth = float("inf")
    for _ in range(3):
        growth = min(growth, _seconds(case.run, make(4 * units)) / _seconds(case.run, make(units)))
        if growth < SLACK:
            break
    return growth


RUNS = {(id(case.run), id(case.texts)): (name, case) for name, case in TABLE.items()}


@pytest.mark.timing
@pytest.mark.parametrize(("name", "case"), RUNS.values(), ids=[name for name, _ in RUNS.values()])
def test_time_grows_linearly_with_the_text(name: str, case: Case) -> None:
    for number, make in enumerate(case.texts):
        growth = _growth(case, make)
        assert growth < SLACK, f"{name}: x{growth:.1f} for {make(3)!r}, text {number}"


@pytest.mark.timing
def test_the_measurement_detects_quadratic_time() -> None:
    def quadratic(text: str) -> int:
        return sum(1 for _ in range(len(text) ** 2 // 20))

    case = Case(quadratic, ())
    # `_growth` is the smallest of three ratios, so a busy machine spoils it more easily here.
    assert any(_growth(case, lambda n: "a" * n) > SLACK for _ in range(5))


def test_json_of_the_legacy_dialect_reads_what_the_table_assumes() -> None:
    text = json.dumps({"channel": "shell", "header": {"msg_id": "1", "msg_type": "x"}})
    assert legacy.decode(text).channel == "shell"
