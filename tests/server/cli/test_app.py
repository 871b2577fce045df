import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError

from kbridge.server import safe_log
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.components import access_policy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [n for n in os.environ if n.startswith(("KG_", "KBRIDGE_", "JUPYTER"))]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "RUNTIME", "DATA"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    (tmp_path / "config").mkdir()
    monkeypatch.setattr(safe_log, "_SECRETS", {})
    yield tmp_path
    logging.getLogger("KbridgeApp").handlers.clear()
    for name in ("kbridge", "tornado", "tornado.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)


def make(*argv: str) -> KbridgeApp:
    app = KbridgeApp()
    app.initialize(list(argv))
    return app


def policy_of(app: KbridgeApp) -> AccessPolicy:
    config = app.configuration()
    return access_policy(config.auth, config.listen)


def test_defaults() -> None:
    app = make()
    assert (app.ip, app.port, app.base_url, app.list_kernels) == ("127.0.0.1", 8888, "/", True)
    assert not app.allow_remote_access
    assert len(app.token) == 48
    assert app.token_is_random
    assert make().token != app.token


def test_the_order_of_all_sources(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [make().port]
    monkeypatch.setenv("KG_PORT", "1001")
    found.append(make().port)
    monkeypatch.setenv("KBRIDGE_PORT", "1002")
    found.append(make().port)
    (home / "config" / "kbridge_config.py").write_text("c.KbridgeApp.port = 1003\n")
    found.append(make().port)
    found.append(make("--port=1004").port)
    assert found == [8888, 1001, 1002, 1003, 1004]


def test_misspelled_commands_and_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KBRIDGE_MAX_KERNEL", "3")
    with pytest.raises(SystemExit) as end:
        make("lst")
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "does not accept the argument 'lst' (did you mean kbridge list?)" in told
    assert "KBRIDGE_MAX_KERNEL (did you mean KBRIDGE_MAX_KERNELS?)" in told


def test_the_command_line_beats_files_and_files_beat_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KG_PORT", "1001")
    monkeypatch.setenv("KG_MAX_KERNELS", "1")
    assert make().port == 1001
    config = home / "config" / "kbridge_config.py"
    config.write_text("c.KbridgeApp.port = 1002\nc.BridgeKernelManager.max_kernels = 2\n")
    app = make()
    assert app.port == 1002
    assert app.config.BridgeKernelManager.max_kernels == 2
    app = make("--port=1003", "--max-kernels", "3")
    assert app.port == 1003
    # Kept as text until the class reads it, as every command line value is.
    assert int(app.config.BridgeKernelManager.max_kernels) == 3


def test_json_config_files(home: Path) -> None:
    (home / "config" / "kbridge_config.json").write_text('{"KbridgeApp": {"port": 1004}}')
    assert make().port == 1004


@pytest.mark.parametrize(
    ("environ", "argv", "token"),
    [
        ({"JUPYTER_TOKEN": "one"}, (), "one"),
        ({"JUPYTER_TOKEN": "one", "KG_AUTH_TOKEN": "two"}, (), "two"),
        ({"JUPYTER_TOKEN": "one", "KG_AUTH_TOKEN": "two"}, ("--token=three",), "three"),
        ({"KG_AUTH_TOKEN": ""}, (), ""),
        ({"JUPYTER_TOKEN": "one"}, ("--token=",), ""),
    ],
)
def test_where_the_token_comes_from(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], argv: tuple[str, ...], token: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    app = make(*argv)
    assert (app.token, app.token_is_random) == (token, False)


def test_the_random_token_is_long_and_new_each_time(home: Path) -> None:
    tokens = {KbridgeApp().token for _ in range(20)}
    assert len(tokens) == 20
    assert {len(bytes.fromhex(token)) * 8 for token in tokens} == {192}


def test_a_token_from_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "token").write_text("from-a-file\n")
    monkeypatch.setenv("JUPYTER_TOKEN_FILE", str(home / "token"))
    assert make().token == "from-a-file"


def test_the_token_is_kept_out_of_the_log() -> None:
    make("--token=hunter22")
    assert safe_log.scrub("hunter22") == "[secret]"


@pytest.mark.parametrize(
    ("given", "found"), [("", "/"), ("/", "/"), ("a", "/a/"), ("/a/b", "/a/b/"), ("/a/", "/a/")]
)
def test_base_url(given: str, found: str) -> None:
    assert make(f"--base-url={given}").base_url == found


@pytest.mark.parametrize(
    ("ip", "remote"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("*", True),
        ("0.0.0.0", True),
        ("10.0.0.1", True),
        ("lab.example", True),
    ],
)
def test_remote_access_follows_the_address(ip: str, remote: bool) -> None:
    app = make(f"--ip={ip}")
    assert app.allow_remote_access is remote
    assert policy_of(app).check_hosts is not remote


def test_a_unix_socket_needs_no_host_check(tmp_path: Path) -> None:
    app = make(f"--sock={tmp_path / 's'}")
    assert app.sock == str(tmp_path / "s")
    assert not policy_of(app).check_hosts


def test_origins() -> None:
    app = make("--allow-origin=https://A.example/, http://b.example:81")
    assert policy_of(app).allow_origin == ("https://a.example", "http://b.example:81")
    assert policy_of(make()).allow_origin == ()


@pytest.mark.parametrize(
    "setting", ["sock_mode=rw", "allow_origin_pat=(", "port=70000", "ws_ping_interval=-1"]
)
def test_invalid_settings_are_refused(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(TraitError, match=name):
        KbridgeApp(**{name: int(value) if value.lstrip("-").isdigit() else value})


def test_unknown_gateway_variables_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KG_AUTH_TOKN", "x")
    make()
    said = capsys.readouterr().err
    assert (
        said.count(
            "kbridge ignores the environment variable KG_AUTH_TOKN (did you mean KG_AUTH_TOKEN?)"
        )
        == 1
    )


def test_every_alias_leads_to_a_setting() -> None:
    classes: dict[str, Any] = {c.__name__: c for c in (KbridgeApp, *KbridgeApp.classes)}
    for alias, target in KbridgeApp.aliases.items():
        owner, trait = target.split(".")
        if owner in classes:
            assert trait in classes[owner].class_traits(config=True), alias


def test_the_format_of_the_log() -> None:
    def formatted(*argv: str) -> str:
        app = make(*argv)
        [handler] = app.log.handlers
        assert handler.formatter is not None
        return handler.formatter.format(logging.LogRecord("n", logging.INFO, "", 1, "m", (), None))

    assert formatted().endswith(" n: m")
    assert formatted("--log-format=text").endswith(" n: m")
    assert json.loads(formatted("--log-format=json"))["message"] == "m"
    assert formatted("--KbridgeApp.log_format=%(message)s!") == "m!"


def test_the_access_log_can_be_turned_off() -> None:
    access = logging.getLogger("tornado.access")
    make("--no-access-log")
    assert not access.isEnabledFor(logging.ERROR)
    make("--debug")
    assert access.isEnabledFor(logging.DEBUG)
