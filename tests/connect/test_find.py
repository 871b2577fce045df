"""Find connection files by a part of their names."""

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jupyter_client import connect as peer

from kbridge.connect import find_connection_file
from kbridge.connect.find import locate


def make(directory: Path, *names: str) -> list[Path]:
    """Create files with increasing access times."""
    directory.mkdir(exist_ok=True)
    made = []
    for number, name in enumerate(names):
        path = directory / name
        path.write_text("{}")
        os.utime(path, (1_000_000 + number, 1_000_000))
        made.append(path)
    return made


def test_the_signature_is_that_of_jupyter_client() -> None:
    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert parameters(find_connection_file) == parameters(peer.find_connection_file)


@pytest.mark.parametrize(
    "query",
    ["kernel-b2.json", "kernel-b*", "b2", "kernel-b?.json", "*b2*", "'kernel-b2.json'", "$WANTED"],
)
def test_by_name_glob_and_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.setenv("WANTED", "kernel-b2.json")
    make(tmp_path, "kernel-b2.json", "kernel-c3.json", "kernel-a1.json")
    assert find_connection_file(query, path=str(tmp_path)) == str(tmp_path / "kernel-b2.json")


def test_the_runtime_directory_and_this_one_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, runtime = tmp_path / "here", tmp_path / "runtime"
    (old, shared), (new,) = make(here, "kernel-1.json", "both.json"), make(runtime, "kernel-2.json")
    make(runtime, "both.json")
    os.utime(new, (2_000_000, 0))
    monkeypatch.chdir(here)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    assert find_connection_file() == str(new)
    assert find_connection_file("kernel-1") == str(old)
    assert find_connection_file("both.json") == str(shared), "a name is searched locally first"


def test_the_file_that_was_read_last_is_found(tmp_path: Path) -> None:
    *_, last = make(tmp_path / "a", "kernel-z.json", "kernel-a.json", "kernel-m.json")
    make(tmp_path / "b", "kernel-x.json")
    assert find_connection_file("kern", [str(tmp_path / "b"), str(tmp_path / "a")]) == str(last)


def test_absolute_names_and_globs_need_no_directory(tmp_path: Path) -> None:
    (path,) = make(tmp_path / "a", "kernel-1.json")
    assert find_connection_file(str(path), path="/nowhere") == str(path)
    assert find_connection_file(f"{tmp_path}/a/k*", path="/nowhere") == str(path)
    (tmp_path / "b").mkdir()
    assert find_connection_file(str(tmp_path / "b" / ".." / "a" / "k*")) == str(path)


def test_relative_names_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = make(tmp_path / "sub", "kernel-1.json")
    monkeypatch.chdir(tmp_path)
    for query in ("sub/kernel-1.json", "./sub/kernel-1.json", "sub/kern*"):
        assert find_connection_file(query) == str(path)


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = make(tmp_path, "kernel-1.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_connection_file("~/kernel-1.json") == str(path)
    assert find_connection_file("~/kern*") == str(path)
    assert find_connection_file("kern", "~") == str(path)


def test_a_name_that_only_looks_like_a_home_directory(tmp_path: Path) -> None:
    (path,) = make(tmp_path, "~nobody-of-that-name")
    assert find_connection_file("~nobody-of-that-name", str(tmp_path)) == str(path)


def test_a_directory_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    (path,) = make(tmp_path / "run[1]", "kernel-1.json")
    assert find_connection_file("kern", str(tmp_path / "run[1]")) == str(path)


def test_directories_and_dead_links_are_not_found(tmp_path: Path) -> None:
    (path,) = make(tmp_path, "kernel-1.json")
    (tmp_path / "kernel-2.json").mkdir()
    (tmp_path / "kernel-3.json").symlink_to(tmp_path / "gone")
    assert find_connection_file(path=str(tmp_path)) == str(path)


def test_the_error_lists_directories_and_similar_names(tmp_path: Path) -> None:
    make(tmp_path / "run", "kernel-1234.json", "kernel-4321.json", "other.txt")
    searched = [str(tmp_path / "run"), str(tmp_path / "missing")]
    with pytest.raises(OSError, match="Could not find 'kernel-1243'") as caught:
        find_connection_file("kernel-1243", searched)
    message = str(caught.value)
    assert f"searched: {tmp_path}/run, {tmp_path}/missing (No such file or directory)" in message
    assert "near it: kernel-1234.json" in message
    assert "other.txt" not in message


def test_the_error_without_similar_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_connection_file("kernel-1", str(tmp_path))
    assert str(caught.value) == f"Could not find 'kernel-1'; searched: {tmp_path}"
    with pytest.raises(FileNotFoundError, match="no directory at all"):
        find_connection_file("kernel-1", [])


def test_profiles_are_ignored_with_a_warning(tmp_path: Path) -> None:
    (path,) = make(tmp_path, "kernel-1.json")
    with pytest.warns(UserWarning, match="Jupyter has no profiles. profile=work") as caught:
        assert find_connection_file("1", str(tmp_path), profile="work") == str(path)
    assert caught[0].filename == __file__


def test_locating_is_by_exact_name(tmp_path: Path) -> None:
    (path,) = make(tmp_path, "kernel-1.json")
    assert locate("kernel-1.json", ["/nowhere", str(tmp_path)]) == str(path)
    assert locate("kernel-1", [str(tmp_path)]) is None


NAMES = st.text("ab-.", min_size=1, max_size=6).filter(lambda n: n.strip("."))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(names=st.lists(NAMES, unique=True, max_size=5), query=st.text("ab-.*?", max_size=4))
def test_the_result_is_that_of_jupyter_client(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], query: str
) -> None:
    directory = tmp_path_factory.mktemp("found")
    make(directory, *names)

    def outcome(find: Any) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return str(find(query, path=str(directory)))
            except OSError:
                return "not found"

    theirs = outcome(peer.find_connection_file)
    if Path(theirs).is_dir():  # jupyter_client returns `.` itself
        theirs = "not found"
    assert outcome(find_connection_file) == theirs
