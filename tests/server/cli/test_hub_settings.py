"""The settings for JupyterHub, and the variables that it gives its services."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from traitlets import TraitError

from kbridge.server import safe_log
from kbridge.server.cli import hub_settings
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.hub_settings import read
from tests.support.require import require

SERVICE = {
    "JUPYTERHUB_SERVICE_NAME": "kbridge",
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:10101",
    "JUPYTERHUB_SERVICE_PREFIX": "/services/kbridge/",
    "JUPYTERHUB_API_TOKEN": "the token of the service",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_CLIENT_ID": "service-kbridge",
    "JUPYTERHUB_OAUTH_CALLBACK_URL": "/services/kbridge/oauth_callback",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [n for n in os.environ if n.startswith(("KG_", "KBRIDGE_", "JUPYTER"))]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "RUNTIME", "DATA"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setattr(safe_log, "_SECRETS", {})
    yield
    logging.getLogger("KbridgeApp").handlers.clear()


def make(*argv: str) -> KbridgeApp:
    app = KbridgeApp()
    app.initialize(list(argv))
    return app


def as_service(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    require("jupyterhub")
    for name, value in {**SERVICE, **changes}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)


def test_a_service_listens_where_the_hub_says(monkeypatch: pytest.MonkeyPatch) -> None:
    as_service(monkeypatch)
    config = make().configuration()
    assert (config.listen.ip, config.listen.port, config.listen.port_retries) == (
        *("127.0.0.1", 10101, 0),
    )
    assert (config.base_url, config.answer_yes) == ("/services/kbridge/", True)
    assert config.auth.allow_remote_access
    hub = config.jupyterhub
    assert hub is not None
    assert (hub.name, hub.api_url, hub.client_id, hub.callback) == (
        "kbridge",
        "http://127.0.0.1:8081/hub/api",
        "service-kbridge",
        "/services/kbridge/oauth_callback",
    )
    assert hub.api_token == "the token of the service"
    assert "the token of the service" not in safe_log.scrub("x the token of the service y")


def test_options_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    as_service(monkeypatch, JUPYTERHUB_CLIENT_ID="", JUPYTERHUB_OAUTH_CALLBACK_URL="")
    config = make("--port=10102", "--KbridgeApp.hub_admin_scope=custom:x").configuration()
    hub = config.jupyterhub
    assert hub is not None
    assert (config.listen.port, hub.admin_scope) == (10102, "custom:x")
    assert (hub.client_id, hub.callback) == ("service-kbridge", "/services/kbridge/oauth_callback")
    assert make("--KbridgeApp.jupyterhub=False").configuration().jupyterhub is None


def test_in_the_server_of_a_user_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal there has the same variables, but for the name of a service."""
    as_service(monkeypatch, JUPYTERHUB_SERVICE_NAME="", JUPYTERHUB_SERVICE_PREFIX="/user/alice/")
    config = make().configuration()
    assert (config.jupyterhub, config.base_url, config.listen.port) == (None, "/", 8888)


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TraitError, match="JUPYTERHUB_SERVICE_NAME, JUPYTERHUB_API_TOKEN"):
        make("--KbridgeApp.jupyterhub=True").configuration()
    as_service(monkeypatch)
    monkeypatch.setattr(hub_settings.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TraitError, match=r"pip install '.\[jupyterhub\]'"):
        make().configuration()


def test_tls_within_the_hub() -> None:
    found = read(
        {
            **SERVICE,
            "JUPYTERHUB_SERVICE_URL": "https://10.0.0.7",
            "JUPYTERHUB_SSL_CERTFILE": "cert.pem",
            "JUPYTERHUB_SSL_KEYFILE": "key.pem",
            "JUPYTERHUB_SSL_CLIENT_CA": "ca.pem",
        }
    )
    assert found == {
        "answer_yes": True,
        "base_url": "/services/kbridge/",
        "ip": "10.0.0.7",
        "port_retries": 0,
        "certfile": "cert.pem",
        "keyfile": "key.pem",
        "client_ca": "ca.pem",
    }
