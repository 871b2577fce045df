"""Without OpenTelemetry, tracing is refused with the name of the package."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kbridge.errors import SetupError
from kbridge.jupyter.connection import TRACING
from kbridge.jupyter.extension import KbridgeExtension
from kbridge.tracing.setup import Tracing
from kbridge.tracing.start import start_tracing


def test_tracing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracing = start_tracing()
    assert isinstance(tracing, Tracing)
    tracing.close()


def test_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kbridge.tracing.setup", None)
    with pytest.raises(SetupError, match=r"pip install '\.\[otel\]' in a clone of kbridge"):
        start_tracing()


def test_jupyter_server_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kbridge.tracing.setup", None)
    server: Any = SimpleNamespace(web_app=SimpleNamespace(settings={}))
    extension = KbridgeExtension(tracing=True, log=logging.getLogger("a-server"))
    extension.begin_tracing(server)
    assert TRACING not in server.web_app.settings
    assert "executions are not traced: tracing needs OpenTelemetry" in caplog.text
