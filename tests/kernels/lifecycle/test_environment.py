import os
from pathlib import Path

import pytest

from kbridge.errors import InvalidRequest
from kbridge.kernels.lifecycle.environment import kernel_environment, working_dir

PROCESS = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "KG_AUTH_TOKEN": "s", "JUPYTER_TOKEN": "s"}

CASES = [
    # requested, allowed, inherited, expected besides KERNEL_GATEWAY
    (None, [], [], {"PATH": "/bin", "HOME": "/h", "LANG": "C"}),
    ({}, [], [], {"PATH": "/bin", "LANG": "C"}),
    ({}, [], ["HOME", "NONE"], {"PATH": "/bin", "LANG": "C", "HOME": "/h"}),
    ({}, [], ["KG_AUTH_TOKEN"], {"PATH": "/bin", "LANG": "C"}),
    (
        {"KERNEL_A": "1", "B": "2", "C": "3"},
        ["C"],
        [],
        {"PATH": "/bin", "LANG": "C", "KERNEL_A": "1", "C": "3"},
    ),
    ({"PATH": "/evil", "LD_PRELOAD": "x"}, [], [], {"PATH": "/bin", "LANG": "C"}),
    ({"PATH": "/mine"}, ["PATH"], [], {"PATH": "/mine", "LANG": "C"}),
    ({"KERNEL_A": 1, "KERNEL_B": None, "KERNEL_C": "a\0b"}, [], [], {"PATH": "/bin", "LANG": "C"}),
    ({"KERNEL_A=B": "1", "KERNEL_\0": "1", "": "1"}, [""], [], {"PATH": "/bin", "LANG": "C"}),
    ({"KERNEL_GATEWAY": "0"}, [], [], {"PATH": "/bin", "LANG": "C"}),
]


@pytest.mark.parametrize(("requested", "allowed", "inherited", "expected"), CASES)
def test_kernel_environment(requested, allowed, inherited, expected):
    env = kernel_environment(PROCESS, requested, allowed=allowed, inherited=inherited)
    assert env == {**expected, "KERNEL_GATEWAY": "1"}


SECRETS = {"PGPASSWORD": "p", "OTEL_EXPORTER_OTLP_HEADERS": "key=k"}


@pytest.mark.parametrize(
    ("requested", "inherited", "found"),
    [
        (None, [], {}),
        (None, ["PGPASSWORD"], {"PGPASSWORD": "p"}),
        ({}, ["PGPASSWORD"], {"PGPASSWORD": "p"}),
        ({"PGPASSWORD": "mine"}, [], {"PGPASSWORD": "mine"}),
    ],
)
def test_secrets_that_the_server_uses_are_inherited_by_name_only(requested, inherited, found):
    env = kernel_environment(
        {**PROCESS, **SECRETS},
        requested,
        allowed=["PGPASSWORD"],
        inherited=inherited,
        secrets=SECRETS,
    )
    assert {name: env[name] for name in SECRETS if name in env} == found


@pytest.mark.parametrize(("token", "stays"), [("s", False), ("of another server", True)])
def test_the_token_of_this_server_is_not_inherited_under_the_name_for_clients(token, stays):
    env = kernel_environment({**PROCESS, "KBRIDGE_TOKEN": token}, None)
    assert ("KBRIDGE_TOKEN" in env) is stays


def test_a_kernel_speaks_the_servers_language():
    locale = {"LANG": "de_DE.UTF-8", "LANGUAGE": "de:en", "LC_CTYPE": "C.UTF-8", "LC_ALL": "POSIX"}
    env = kernel_environment({**locale, "LCX": "1", "PATH": "/bin"}, {"KERNEL_A": "1"})
    assert env == {**locale, "PATH": "/bin", "KERNEL_A": "1", "KERNEL_GATEWAY": "1"}


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


@pytest.mark.parametrize("path", [5, "a/\ud800"])
def test_a_path_is_text_that_a_file_may_have(tmp_path: Path, path):
    with pytest.raises(InvalidRequest, match="path"):
        working_dir(tmp_path, path)


@pytest.mark.parametrize(
    ("wished", "expected"),
    [
        ("{root}/a/b", "a/b"),
        ("{root}/a/none", "a"),
        ("{root}", "."),
        ("{root}/../elsewhere", "."),
        ("{root}-beside", "."),
        ("{link}/b", "a/b"),
        ("/", "."),
        ("a/b", "."),
        ("{root}/a\0b", "."),
        (5, "."),
        (None, "."),
    ],
)
def test_the_directory_that_a_gateways_client_asks_for(tmp_path: Path, wished, expected):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    for beside in ("elsewhere", "root-beside"):
        (tmp_path / beside).mkdir()
    link = tmp_path / "link"
    link.symlink_to(root / "a")
    if isinstance(wished, str):
        wished = wished.format(root=root, link=link)
    env = {"KERNEL_WORKING_DIR": wished}
    assert working_dir(root, None, env) == root / expected
    assert working_dir(root, "a", env) == root / "a", "the path in the request has precedence"


def test_below_the_topmost_directory():
    assert working_dir(Path("/"), "none/such") == Path("/")
    assert working_dir(Path("/"), "proc/self/none") in (Path("/proc/self"), Path("/"))


def test_a_long_path_costs_what_exists_of_it(tmp_path: Path, monkeypatch):
    looks = []
    real = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: looks.append(path) or real(path))
    (tmp_path / "a").mkdir()
    assert working_dir(tmp_path, "a/" + "x/" * 60_000) == tmp_path / "a"
    assert len(looks) == 2


def test_the_links_of_an_endless_directory_are_not_followed(tmp_path: Path, monkeypatch):
    followed = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: followed.append(path) or real(path))
    (tmp_path / "a").mkdir()
    wished = f"{tmp_path}/a/"
    assert working_dir(tmp_path, None, {"KERNEL_WORKING_DIR": wished}) == tmp_path / "a"
    endless = {"KERNEL_WORKING_DIR": wished + "x/" * 60_000}
    assert working_dir(tmp_path, None, endless) == tmp_path
    assert followed == [wished]


def test_kernels_do_not_get_the_variables_of_a_service_of_jupyterhub():
    given = {"JUPYTERHUB_API_TOKEN": "t", "JPY_API_TOKEN": "t", "JUPYTERHUB_USER": "", "HOME": "/h"}
    service = {**given, "JUPYTERHUB_SERVICE_NAME": "kbridge"}
    names = ["JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN"]
    for requested in (None, {}):
        env = kernel_environment(service, requested, inherited=names, allowed=names)
        assert [name for name in env if "HUB" in name or "API" in name] == []
    # In the server of a user, the token is that of the user, and kernels need it.
    assert kernel_environment(given, None) == {**given, "KERNEL_GATEWAY": "1"}
