"""Check the documentation: names, commands, defaults, counters and examples."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kbridge
from kbridge import HubTable, errors
from kbridge.jupyter import KbridgeExtension
from kbridge.link import MemoryKernel
from kbridge.server.api.routes import ROUTES
from kbridge.server.cli import gateway_settings
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.attach import AttachApp
from kbridge.server.cli.commands import ListApp, StopApp
from kbridge.server.cli.completion import CompletionApp
from kbridge.server.cli.health import HealthApp
from kbridge.server.cli.kernelgateway import KernelGatewayApp
from kbridge.server.cli.mcp import McpApp
from kbridge.server.cli.options import unknown_sections
from kbridge.server.cli.restart import RestartApp
from kbridge.server.cli.run import LogsApp, RunApp
from kbridge.server.cli.status import StatusApp
from tests.conftest import ServerFactory
from tests.hub.rig import INFO, KEY
from tests.support.execution_script import ExecutionScript
from tests.support.memory import MemoryKernels
from tests.support.server import TOKEN
from tests.support.waiting import TIMEOUT
from tests.test_layers import LAYERS

COMMANDS: dict[str, Any] = {
    "attach": AttachApp,
    "completion": CompletionApp,
    "health": HealthApp,
    "kernelgateway": KernelGatewayApp,
    "list": ListApp,
    "logs": LogsApp,
    "mcp": McpApp,
    "restart": RestartApp,
    "run": RunApp,
    "status": StatusApp,
    "stop": StopApp,
}
CONFIGURABLE: dict[str, Any] = {
    cls.__name__: cls
    for cls in (KbridgeApp, *KbridgeApp.classes, *COMMANDS.values(), KbridgeExtension)
}
ROOT = Path(__file__).parents[1]
PACKAGE = Path(kbridge.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FIRST_REQUESTS = ROOT / "docs" / "first-requests.md"


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(path: Path, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for tag, code in found if tag == language]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", h.lower()) for h in headings)
    return {h.strip().replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = without_code(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
    decisions = ROOT / "docs" / "adr"
    index = (decisions / "index.md").read_text()
    for page in decisions.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    if page.name.startswith("peer-suite"):
        return  # names tests of other projects
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).is_file(), f"{page.name}: {path}"
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{page.name}: {name}"


def picture() -> dict[str, int]:
    """Paths in the architecture's picture, with their layers."""
    [block] = [b for b in code_blocks(ARCHITECTURE) if b.startswith("kbridge/\n")]
    found: dict[str, int] = {}
    folders: list[str] = []  # the folders that contain the line, outermost first
    layer = -1
    for line in block.splitlines()[1:]:
        match = re.match(r"( +)(\S+)(?:\s+LAYER (\d))?", line)
        assert match, line
        indent, name, number = match.groups()
        depth = len(indent) // 2 - 1
        assert depth <= len(folders), line
        del folders[depth:]
        if depth == 0:
            layer = int(number) if number else -1
        path = "".join(folders) + name
        assert path not in found, f"{path} is drawn twice"
        found[path] = layer
        if name.endswith("/"):
            folders.append(name)
    return found


def test_the_picture_shows_the_tree() -> None:
    modules = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")}
    drawn = {name for name in picture() if not name.endswith("/")}
    # Packages are drawn as folders. _version.py and the root package are not drawn.
    there = {m for m in modules if not m.endswith("__init__.py") and m != "_version.py"}
    assert drawn == there


def test_the_picture_shows_the_layers() -> None:
    for name, layer in picture().items():
        part = name.split("/", maxsplit=1)[0].removesuffix(".py")
        assert layer == LAYERS[part], name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    text = page.read_text()
    spoken = re.findall(r"`make ([a-z]+)", text)
    written = re.findall(r"^(?:\$ )?make ([a-z]+)", text, flags=re.MULTILINE)
    assert {*spoken, *written} <= targets


def test_every_close_code_is_explained() -> None:
    raised = {
        c.close_code
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.KbridgeError)
    }
    told = re.findall(r"^\| (\d{4}) \|", (ROOT / "docs" / "websocket.md").read_text(), re.MULTILINE)
    assert raised <= {int(code) for code in told}


def test_every_http_status_is_explained() -> None:
    raised = {
        c.http_status
        for c in vars(errors).values()
        if isinstance(c, type)
        and issubclass(c, errors.ClientError | errors.BridgeError | errors.KernelStartError)
    }
    told = re.findall(r"^\| (\d{3}) \|", (ROOT / "docs" / "rest.md").read_text(), re.MULTILINE)
    assert raised <= {int(code) for code in told}


def test_every_api_route_is_documented() -> None:
    text = (ROOT / "docs" / "rest.md").read_text()
    for pattern, _ in ROUTES:
        path = re.sub(r"\(.*?\)", "ID", pattern).removesuffix("/?")
        if path.startswith("/api"):
            documented = path.replace("kernelspecs/ID", "kernelspecs/NAME")
            documented = documented.replace("executions/ID", "executions/MSG_ID")
            assert re.search(rf" {re.escape(documented)}[` ]", text), path


def test_every_gateway_variable_is_documented() -> None:
    text = (ROOT / "docs" / "kernel-gateway.md").read_text()
    told = set(re.findall(r"\bKG_\w+", text))
    assert {v.name for v in gateway_settings.VARIABLES} == told


def test_the_page_says_what_each_dependency_is_for() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    [block] = re.findall(r"^dependencies = \[\n(.*?)^\]", project, flags=re.DOTALL | re.MULTILINE)
    page = (ROOT / "docs" / "installation.md").read_text()
    for name in re.findall(r'"([a-z_]+)', block):
        assert f"| `{name}` |" in page, name


def shell_lines(page: Path) -> list[str]:
    """Commands of code blocks without a language, continued lines joined."""
    blocks = "\n".join(code_blocks(page)).replace("\\\n", " ")
    return [line.removeprefix("$ ").strip() for line in blocks.splitlines()]


def words(command: str) -> list[str]:
    """Return the words of a command without leading assignments and RUN."""
    split = shlex.split(command, comments=True)
    while split and (re.match(r"[A-Z_]+=", split[0]) or split[0] == "RUN"):
        split = split[1:]
    return split


def commands(page: Path, program: str) -> list[str]:
    """Return the commands of a program on a page: in code blocks, and in the text with options."""
    shown = [part for line in shell_lines(page) for part in line.split("&&")]
    shown += re.findall(rf"`((?:KG_\w+=\S* )*{program} [^`\n]+)`", without_code(page.read_text()))
    found = []
    for command in shown:
        try:
            if words(command)[:1] == [program] and words(command)[1:2] != ["|"]:  # a log line
                found.append(command.strip())
        except ValueError:  # not shell
            continue
    return found


OF_KBRIDGE = [(page, c) for page in PAGES for c in commands(page, "kbridge")]
OF_JUPYTER = [(page, c) for page in PAGES for c in commands(page, "jupyter")]


@pytest.mark.parametrize(("page", "command"), OF_KBRIDGE, ids=lambda v: getattr(v, "name", v))
def test_documented_commands_are_accepted(page: Path, command: str, capsys: Any) -> None:
    """By the parser of the command itself, which refuses options that do not exist."""
    kg_variables = dict(re.findall(r"\b(KG_\w+)=(\S*)", command))
    assert gateway_settings.read(kg_variables)[1] == []
    args = words(command)[1:]
    app: Any = KbridgeApp
    if args and not args[0].startswith("-"):
        assert args[0] in COMMANDS, command
        app, args = COMMANDS[args[0]], args[1:]
    instance = app()
    code: Any = None
    try:
        instance.parse_command_line(args)
    except SystemExit as end:
        code = end.code
    assert not code, capsys.readouterr().err
    assert unknown_sections(instance.config, app, ignore=()) == []


def test_the_pages_have_commands() -> None:
    assert len(OF_KBRIDGE) > 20
    assert {command.split()[1] for _, command in OF_JUPYTER} >= {"lab", "server"}


@pytest.mark.parametrize(("page", "command"), OF_JUPYTER, ids=lambda v: getattr(v, "name", v))
def test_documented_commands_of_jupyter_name_existing_settings(page: Path, command: str) -> None:
    from jupyter_server.gateway.gateway_client import GatewayClient
    from jupyter_server.serverapp import ServerApp

    known = {**CONFIGURABLE, "ServerApp": ServerApp, "GatewayClient": GatewayClient}
    for owner, name in re.findall(r"--([A-Z]\w+)\.(\w+)", command):
        if owner not in gateway_settings.SECTIONS:
            assert name in known[owner].class_trait_names(config=True), command
    if "--gateway-url" in command and command in shell_lines(page):
        assert "--GatewayClient.auth_token=" in command, "a gateway asks for its token"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_documented_settings_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`(?:--|c\.)?([A-Z]\w+)\.(\w+)(?:[ =][^`]*)?`", text)
    named += re.findall(r"^c\.(\w+)\.(\w+) =", text, flags=re.MULTILINE)
    for owner, name in named:
        if owner in CONFIGURABLE and not (
            owner in gateway_settings.SECTIONS and page.name == "settings.md"
        ):
            traits = CONFIGURABLE[owner].class_trait_names(config=True)
            assert name in traits or f"{owner}.{name}" in {
                s.trait for s in gateway_settings.SETTINGS
            }, name


UNITS = {"s": 1.0, "seconds": 1.0, "KiB": 2**10, "MiB": 2**20, "bytes": 1.0}
# A setting, then its default: `journal_limit`, 64 MiB; `resume_timeout` (8 hours).
STATED = re.compile(r"`(\w+)`,? \(?([\d,.]+) (s|seconds|KiB|MiB|bytes)\b")


def stated_defaults() -> list[tuple[str, str, float]]:
    found = []
    for page in PAGES:
        text = re.sub(r"\s+", " ", without_code(page.read_text()))
        for name, number, unit in STATED.findall(text):
            found.append((page.name, name, float(number.replace(",", "")) * UNITS[unit]))
    return found


@pytest.mark.parametrize(("page", "name", "value"), stated_defaults())
def test_documented_defaults_are_true(page: str, name: str, value: float) -> None:
    owners = [c for c in CONFIGURABLE.values() if name in c.class_trait_names(config=True)]
    defaults = {c.class_traits()[name].default() for c in owners}
    assert value in defaults, f"{page}: {name} is {defaults}"


def test_the_pages_have_defaults() -> None:
    assert {"journal_limit", "kernel_info_timeout"} <= {name for _, name, _ in stated_defaults()}


def keys_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return set(value).union(*map(keys_of, value.values())) if isinstance(value, dict) else set()


async def test_documented_counters_can_be_read() -> None:
    """`GET /api/status?statistics=1` gives what `HubTable.statistics` gives."""
    hubs = HubTable(link=MemoryKernel)
    hubs.open("a-kernel", INFO)
    try:
        there = keys_of(hubs.statistics())
    finally:
        await hubs.aclose()
    named = set()
    for page in PAGES:
        text = re.sub(r"\s+", " ", page.read_text())
        for name, where in re.findall(r"counted \(`(\w+)`([^)]*)\)", text):
            assert "`GET /api/status?statistics=1`" in where, f"{page.name}: where is {name}?"
            named.add(name)
    assert named
    assert named <= there


async def test_the_documented_execution_has_the_fields_of_real_ones() -> None:
    [model] = [
        json.loads(code)
        for code in code_blocks(ROOT / "docs" / "rest.md", "json")
        if '"code_bytes"' in code
    ]
    links = MemoryKernels()
    hubs = HubTable(link=links)
    script = ExecutionScript(hubs.open("a-kernel", INFO), links.latest, KEY)
    try:
        script.submit("a-request", cell="a-cell")
        script.begin("a-request")
        [execution] = script.hub.executions.find()
        described = script.hub.describe(execution)
    finally:
        await hubs.aclose()
    assert list(model) == list(described)
    for name, value in model.items():
        if described[name] is not None:
            assert type(described[name]) is type(value), name


def test_every_subcommand_is_documented_and_exists() -> None:
    assert set(KbridgeApp.subcommands) == set(COMMANDS)


def quick_start() -> str:
    [program] = [c for c in code_blocks(FIRST_REQUESTS, "python") if "websockets" in c]
    return program


def curl(line: str, port: int, **variables: str) -> str:
    """Run a documented command with another port; return what it prints."""
    done = subprocess.run(
        ["bash", "-c", line.replace("localhost:8888", f"localhost:{port}")],
        env={**os.environ, "TOKEN": TOKEN, **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.kernel
def test_the_curl_commands_run(new_server: ServerFactory) -> None:
    server = new_server()
    lines = [line for line in shell_lines(FIRST_REQUESTS) if line.startswith("curl")]
    assert len(lines) == 2
    for line in lines:
        assert '"execution_state"' in curl(line, server.port)


@pytest.mark.kernel
def test_the_curl_commands_of_the_rest_page_run(new_server: ServerFactory) -> None:
    server = new_server()
    lines = [line for line in shell_lines(ROOT / "docs" / "rest.md") if line.startswith("curl")]
    [start] = [line for line in lines if "POST" in line]
    [delete] = [line for line in lines if "DELETE" in line]
    kernel_id = json.loads(curl(start, server.port))["id"]
    lists = [line for line in lines if "executions" in line]
    assert len(lists) + 2 == len(lines)
    for line in lists:
        assert json.loads(curl(line, server.port, ID=kernel_id)) == []
    assert curl(delete, server.port, ID=kernel_id) == ""
    assert server.request("GET", "/api/kernels").json() == []


@pytest.mark.kernel
def test_the_quick_start_runs(new_server: ServerFactory) -> None:
    program = quick_start()
    server = new_server()
    env = {**os.environ, "TOKEN": TOKEN, "KBRIDGE_HOST": f"127.0.0.1:{server.port}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"
    assert done.stdout.split() == ["42"]


def test_install_commands_name_a_clone() -> None:
    """kbridge is not on PyPI yet, so its name would install nothing, or another package."""
    texts = [*PAGES, *PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.*")]
    named = re.compile(
        r"\b(?:pip|pipx|uv|uvx)\b[^\n#|;&`]*(?<!of) ['\"]?kbridge(?:\[\w+\])?(?![\w/.-])"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if path.is_file() and path.suffix in {".md", ".py", ".yml", ".yaml", ".html", ".service"}
        for match in named.finditer(path.read_text())
        if " install " in match[0] or match[0].startswith("uvx")
    ]
    assert found == []
    assert named.search("pip install --upgrade 'kbridge[otel]'")
    assert not named.search("pip install '.[otel]'     # in a clone of kbridge")
