"""Each package exports the names that docs/api.md lists, and no others."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kbridge
from kbridge import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
PACKAGES = re.findall(r"^## (kbridge[.\w]*)$", PAGE, flags=re.MULTILINE)
LAZY = [
    "kbridge",
    "kbridge.hub",
    "kbridge.link",
    "kbridge.wire",
    "kbridge.connection",
    "kbridge.client",
]


def documented(package: str) -> set[str]:
    [section] = re.findall(
        rf"^## {re.escape(package)}$(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE
    )
    return set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_equal_those_of_the_page(package: str) -> None:
    module = importlib.import_module(package)
    hidden = {name for name in module.__all__ if re.match("_[a-z]", name)}  # hooks of Jupyter
    assert documented(package) == set(module.__all__) - hidden


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    for name in sorted(documented(package)):
        assert getattr(module, name) is not None
    namespace: dict[str, object] = {}
    exec(f"from {package} import *", namespace)
    assert documented(package) - {"__version__"} <= set(namespace)


@pytest.mark.parametrize("package", LAZY)
def test_an_unknown_name_raises_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_importing_a_package_loads_no_other_modules() -> None:
    program = f"import sys, {', '.join(LAZY)}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert {"zmq", "tornado", "traitlets", "jupyter_client"}.isdisjoint(loaded)
    assert {name for name in loaded if name.startswith("kbridge")} == {
        *LAZY,
        "kbridge._lazy",
        "kbridge._version",
    }


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_imports_in_the_documentation_work(page: Path) -> None:
    """Imports in code blocks name public things."""
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^(?:from kbridge|import kbridge).*$", code, re.MULTILINE):
            exec(line, {})
            package = line.split()[1]
            assert package in PACKAGES, line


def test_the_page_has_the_codes_of_the_errors() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (\d{4}) \|", PAGE, flags=re.MULTILINE)
    assert {name: (int(status), int(code)) for name, status, code in rows} == {
        name: (getattr(errors, name).http_status, getattr(errors, name).close_code)
        for name in errors.__all__
    }


def test_the_examples_of_the_page_run() -> None:
    programs = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        exec(program, {})


def test_the_top_level_lists_its_names() -> None:
    assert kbridge.__all__ == sorted(kbridge.__all__)
    assert set(kbridge.__all__) <= set(dir(kbridge))
    assert kbridge.errors.KbridgeError is kbridge.KbridgeError


@pytest.mark.parametrize("name", ["connection", "errors", "hub", "tornado"])
def test_a_module_can_be_imported_without_the_others(name: str) -> None:
    program = f"import kbridge.{name}, kbridge; assert kbridge.{name}; print(kbridge.Hub.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Hub\n"), done.stderr


def packages() -> list[str]:
    found = Path(kbridge.__file__).parent.glob("*/__init__.py")
    return sorted(f"kbridge.{path.parent.name}" for path in found)


@pytest.mark.parametrize("package", packages())
def test_a_package_without_public_names_says_that_it_is_internal(package: str) -> None:
    doc = importlib.import_module(package).__doc__ or ""
    assert ("Internal:" in doc) == (package not in PACKAGES), package


def test_the_version_begins_with_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", kbridge.__version__)
