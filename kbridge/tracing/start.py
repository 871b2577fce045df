"""Starts tracing if OpenTelemetry, which is optional, is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.errors import SetupError

if TYPE_CHECKING:
    from kbridge.tracing.setup import Tracing

__all__ = ["start_tracing"]


def start_tracing() -> Tracing:
    """Return the spans of a server and their exporter.

    Raises
    ------
    SetupError
        If OpenTelemetry is not installed, or its environment variables cannot be followed.
    """
    try:
        from kbridge.tracing.setup import Tracing
    except ImportError as error:
        raise SetupError(
            f"tracing needs OpenTelemetry: pip install '.[otel]' in a clone of kbridge ({error})"
        ) from None
    return Tracing()
