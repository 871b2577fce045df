"""The distributions, and the locked versions that they are tested with."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.require import lack, require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = ROOT / "constraints.txt"
BUNDLE = "kbridge/labextension"
INSTALLED = "share/jupyter/labextensions/@kbridge/jupyterlab/"


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


def build(target: str, tree: Path, place: Path, **env: str) -> tuple[Path, str]:
    """Build a distribution; return it and what the build has printed."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", place],
        cwd=tree,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = place.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    archive, _ = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    return archive


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files; programs that run there add others, such as byte code."""
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(source) as tar:
        tar.extractall(place, filter="data")
    return place / source.name.removesuffix(".tar.gz")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_source_distribution_has_what_its_tests_need(unpacked: Path) -> None:
    """Run the tests that read files of the repository from the distribution."""
    files = ("docs", "dockerfile", "api", "threat_model", "packaging")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-m", "not kernel and not slow"),
            *("-p", "no:cacheprovider", *(f"tests/test_{name}.py" for name in files)),
        ],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\d{3,} passed", done.stdout), done.stdout[-300:]


@pytest.mark.slow
def test_the_source_distribution_has_all_sources(source: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    command = ["git", "ls-files", "kbridge", "tests", "benchmarks", "tools", "docs", "examples"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(source) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers()}
    assert sorted(set(listed.stdout.split()) - names) == []


@pytest.mark.slow
def test_the_source_distribution_has_no_rubbish(source: Path) -> None:
    with tarfile.open(source) as tar:
        names = [member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()]
    assert len(names) > 200
    assert not [n for n in names if re.search(r"__pycache__|\.pyc$|\.venv|_cache/", n)]
    assert {"constraints.txt", "Dockerfile", ".ci/run", "CONTRIBUTING.md"} <= set(names)


def labextension(wheel: Path) -> dict[str, int]:
    """Return the files of a wheel that belong to the JupyterLab extension, and their sizes."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    assert not [name for name in files if name.startswith(BUNDLE)], "it would be there twice"
    return {n.partition(INSTALLED)[2]: size for n, size in files.items() if INSTALLED in n}


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["repository", "source distribution"])
def test_a_wheel_has_the_jupyterlab_extension_without_node(
    origin: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not (ROOT / BUNDLE / "package.json").exists():
        lack("the JupyterLab extension is not built: run `make labextension`")
    tree = ROOT if origin == "repository" else request.getfixturevalue("unpacked")
    wheel, _ = build("wheel", tree, tmp_path, PATH=str(tmp_path))
    files = labextension(wheel)
    assert {"package.json", "install.json"} <= files.keys()
    assert [n for n in files if re.fullmatch(r"static/remoteEntry\.\w+\.js", n)]
    assert [n for n in files if n.endswith("/plugin.json")], "the schema of the settings"
    assert not [n for n in files if n.endswith((".ts", ".map"))]
    assert 10_000 < sum(files.values()) < 300_000
    assert wheel.stat().st_size < 1_200_000
    with zipfile.ZipFile(wheel) as archive:
        module = archive.read("kbridge/server/static/kbridge.js")
        assert not [name for name in archive.namelist() if name.startswith("client-js")]
    assert module == (ROOT / "client-js" / "kbridge.js").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("newer", [True, False])
def test_an_old_build_of_the_extension_is_replaced(
    newer: bool, unpacked: Path, tmp_path: Path
) -> None:
    if not (unpacked / BUNDLE / "package.json").exists():
        lack("the JupyterLab extension is not built: run `make labextension`")
    tree = tmp_path / "tree"
    shutil.copytree(unpacked, tree, ignore=shutil.ignore_patterns("tests"))
    built = (tree / BUNDLE / "package.json").stat().st_mtime
    for path in (tree / "labextension").rglob("*.*"):
        os.utime(path, (built, built))
    if newer:
        os.utime(tree / "labextension" / "src" / "index.ts", (built + 1, built + 1))
    program = tmp_path / "npm"
    program.write_text(f"#!/bin/sh\necho again > {tree / BUNDLE / 'static' / 'again.js'}\n")
    program.chmod(0o755)
    wheel, _ = build("wheel", tree, tmp_path, PATH=str(tmp_path))
    assert ("static/again.js" in labextension(wheel)) is newer


@pytest.mark.slow
def test_a_wheel_can_be_built_without_the_extension(unpacked: Path, tmp_path: Path) -> None:
    """From a clone on a machine without npm."""
    tree = tmp_path / "tree"
    shutil.copytree(unpacked, tree, ignore=shutil.ignore_patterns("tests"))
    shutil.rmtree(tree / BUNDLE, ignore_errors=True)
    wheel, output = build("wheel", tree, tmp_path, PATH=str(tmp_path))
    assert not labextension(wheel)
    assert "npm is missing" in output


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_compiled_part_is_a_distribution_of_its_own(unpacked: Path, tmp_path: Path) -> None:
    """Built as pip does: a source distribution, from it a wheel, and that is installed."""
    require("cc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lack("Python's headers are missing: install python3-dev")
    build_with = "import setuptools.build_meta as b, sys; getattr(b, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build_with, "build_sdist", tmp_path, cwd=unpacked / "speedups")
    [archive] = tmp_path.glob("kbridge_speedups-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    tree = tmp_path / archive.name.removesuffix(".tar.gz")
    assert {"kbridge_speedups.c", "LICENSE", "README.md"} <= {each.name for each in tree.iterdir()}
    run(sys.executable, "-c", build_with, "build_wheel", tmp_path, cwd=tree)
    [wheel] = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name, "one wheel for all versions of Python"
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        files = [n for n in archive_of_wheel.namelist() if ".dist-info/" not in n]
        archive_of_wheel.extractall(tmp_path / "installed")
    assert files == ["kbridge_speedups.abi3.so"]
    code = "import kbridge_speedups as k; print(k.__file__, k.API)"
    place = tmp_path / "installed"
    output = run(sys.executable, "-c", code, cwd=place)
    assert output.startswith(str(place))


def test_the_distribution_of_kbridge_needs_no_compiler() -> None:
    """The compiled part is neither a dependency nor in an extra."""
    extras = PROJECT["optional-dependencies"].values()
    for text in (*PROJECT["dependencies"], *(text for group in extras for text in group)):
        assert canonicalize_name(Requirement(text).name) != "kbridge-speedups"
