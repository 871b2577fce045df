"""Sets OpenTelemetry up from its own environment variables, and ends it."""

from __future__ import annotations

import os
import sys
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from kbridge._version import __version__
from kbridge.errors import SetupError
from kbridge.tracing.spans import ExecutionSpans

__all__ = ["Tracing"]

_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Tracing:
    """The spans of a server, and their way out.

    OpenTelemetry's environment variables decide about the rest: `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_TRACES_SAMPLER` and the others. Spans are sent by a thread.

    Attributes
    ----------
    spans : ExecutionSpans
        The spans.

    Raises
    ------
    SetupError
        If these variables name an exporter that there is not.
    """

    def __init__(self) -> None:
        resource = Resource.create({"service.name": "kbridge", "service.version": __version__})
        named = os.environ.get("OTEL_SERVICE_NAME")
        if named:
            resource = resource.merge(Resource({"service.name": named}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = _exporter()
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.spans = ExecutionSpans(self._provider.get_tracer("kbridge", __version__))

    def close(self) -> None:
        """Send the spans that have ended. Blocks; call it in a thread."""
        self._provider.shutdown()


def _exporter() -> SpanExporter | None:
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "none":
        return None
    if name == "console":
        return ConsoleSpanExporter(out=sys.stdout)
    if name != "otlp":
        raise SetupError(f"OTEL_TRACES_EXPORTER={name} is not supported: otlp, console or none")
    chosen = next(filter(None, map(os.environ.get, _PROTOCOLS)), "http/protobuf")
    if chosen != "http/protobuf":
        raise SetupError(f"{_PROTOCOLS[1]}={chosen} is not supported: http/protobuf")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
