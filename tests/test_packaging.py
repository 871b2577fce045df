"""The source distribution, and the locked versions that it is tested with."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = ROOT / "constraints.txt"


def test_the_lock_has_every_dependency_at_a_version_that_is_allowed() -> None:
    locked: dict[str, list[str]] = {}
    for line in LOCK.read_text().splitlines():
        pin = Requirement(line)
        [only] = list(pin.specifier)
        assert only.operator == "==", line
        locked.setdefault(canonicalize_name(pin.name), []).append(only.version)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = [Requirement(text) for group in groups for text in group]
    assert len(wanted) > 25
    for need in wanted:
        if need.name != PROJECT["name"]:
            versions = locked[canonicalize_name(need.name)]
            assert all(need.specifier.contains(v, prereleases=True) for v in versions), need


def test_the_lock_names_no_host() -> None:
    text = LOCK.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-|#)", text, flags=re.MULTILINE), "options or comments"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", place],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [archive] = place.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_source_distribution_has_what_its_tests_need(unpacked: Path) -> None:
    """Run tests that read files of the repository, and some others, from the distribution."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "not kernel and not browser and not slow",
            ),
            *("-p", "no:cacheprovider", "tests/test_docs.py", "tests/test_dockerfile.py"),
            *("tests/test_api.py", "tests/test_layers.py", "tests/test_benchmarks.py"),
            *("tests/test_threat_model.py", "tests/test_packaging.py", "tests/wire"),
        ],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\d{3,} passed", done.stdout), done.stdout[-300:]


@pytest.mark.slow
def test_the_source_distribution_has_no_rubbish(unpacked: Path) -> None:
    names = [str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()]
    assert len(names) > 200
    assert not [n for n in names if re.search(r"__pycache__|\.pyc$|\.venv|_cache", n)]
    assert {"constraints.txt", "Dockerfile", ".ci/run", "CONTRIBUTING.md"} <= set(names)
