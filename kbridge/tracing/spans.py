"""One span for each request to execute code, with a child for each stage and events for its steps.

A span begins when the request has arrived from a websocket, and ends with the execution. Its
children follow one another: `wait` until the request is sent to the kernel, `queue` until the
kernel begins with it, `run` until the kernel is idle. The span's
context is taken from the metadata of the request (`traceparent` and `tracestate`, W3C Trace
Context), and the metadata that the kernel receives names the span. Code is never recorded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kbridge.flow.execution import ERROR, FINISHED, Execution
from kbridge.wire.message import Message

__all__ = ["LIMIT", "ExecutionSpans", "KernelSpans"]

LIMIT: Final = 1000
"""Open spans of all kernels. While there are so many, other executions have no span."""

_METADATA_BYTES: Final = 1 << 16  # larger metadata is not parsed: its request has no parent
_W3C: Final = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Open:
    """An open span; each flag is True after its event was added.

    `stage` is the child of the present stage; None after the last one.
    """

    span: Span
    stage: Span | None = None
    execution: Execution | None = None
    began: bool = False
    output: bool = False
    replied: bool = False
    idle: bool = False


class ExecutionSpans:
    """The spans of all kernels.

    Parameters
    ----------
    tracer : Tracer
        Makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.open = 0

    def kernel(self, kernel_id: str) -> KernelSpans:
        """Return the spans of one kernel."""
        return KernelSpans(self, kernel_id)


class KernelSpans:
    """The spans of one kernel (an `ExecutionObserver`).

    Parameters
    ----------
    spans : ExecutionSpans
        Those of all kernels.
    kernel_id : str
        The id of the kernel.
    """

    def __init__(self, spans: ExecutionSpans, kernel_id: str) -> None:
        self._spans = spans
        self._kernel_id = kernel_id
        self._open: dict[str, _Open] = {}
        self._closed = False

    def on_request(self, msg: Message) -> Message:
        """Begin the span of a request; return the request with its context in the metadata."""
        msg_id = msg.msg_id
        if self._closed or not msg_id or self._spans.open >= LIMIT:
            return msg
        if msg_id in self._open:  # clients choose the ids
            self._end(msg_id, "replaced")
        metadata = _metadata(msg)
        carrier = {k: v for k, v in (metadata or {}).items() if isinstance(v, str)}
        span = self._spans.tracer.start_span(
            "execute_request",
            context=_W3C.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "kbridge.kernel_id": self._kernel_id,
                "kbridge.execution_id": msg_id[:200],
            },
        )
        self._open[msg_id] = found = _Open(span)
        self._spans.open += 1
        self._begin(found, "wait")
        if metadata is None:
            return msg
        _W3C.inject(metadata, trace.set_span_in_context(span))
        return msg._replace(metadata=json.dumps(metadata).encode())

    def on_sent(self, msg_id: str) -> None:
        """Note that a request was sent to the kernel."""
        if (found := self._open.get(msg_id)) is not None:
            found.span.add_event("sent")
            if not found.began:
                self._begin(found, "queue")

    def on_not_noted(self, msg_id: str) -> None:
        """End the span of a request whose execution is not observed."""
        self._end(msg_id, "not observed")

    def on_execution(self, execution: Execution) -> None:
        """Note the present state of an execution that has changed."""
        found = self._open.get(execution.msg_id)
        if found is None:
            return
        found.execution = execution
        if execution.begun and not found.began:
            found.began = True
            found.span.add_event("busy")
            self._begin(found, "run")
        if execution.replied is not None and not found.replied:
            found.replied = True
            found.span.add_event("reply")
        if execution.ended_seq is not None and not found.idle:
            found.idle = True
            found.span.add_event("idle")
            self._begin(found, "")

    def on_kernel_activity(self) -> None:
        """Look at the output of this wake-up, which was counted by now."""
        for msg_id, found in list(self._open.items()):
            execution = found.execution
            if execution is None:
                continue
            if not found.output and execution.messages > _without_output(execution):
                found.output = True
                found.span.add_event("first output")
            if execution.state in FINISHED:
                self._finish(msg_id, found, execution)

    def on_kernel_disconnected(self) -> None:
        """Do nothing: requests go on."""

    def close(self) -> None:
        """End all spans; the kernel is gone."""
        self._closed = True
        for msg_id in list(self._open):
            self._end(msg_id, "the kernel is gone")

    def _begin(self, found: _Open, stage: str) -> None:
        """End the present stage of a span, and begin another unless its name is empty."""
        if found.stage is not None:
            found.stage.end()
            found.stage = None
        if stage:
            context = trace.set_span_in_context(found.span)
            found.stage = self._spans.tracer.start_span(stage, context=context)

    def _finish(self, msg_id: str, found: _Open, execution: Execution) -> None:
        span = found.span
        span.set_attributes(
            {
                "kbridge.execution.state": execution.state,
                "kbridge.execution.code_bytes": execution.code_bytes,
                "kbridge.execution.output_bytes": execution.nbytes,
                "kbridge.execution.messages": execution.messages,
            }
        )
        if execution.count is not None:
            span.set_attribute("kbridge.execution.count", execution.count)
        self._end(msg_id, "" if execution.state != ERROR else "the code raised an error")

    def _end(self, msg_id: str, error: str) -> None:
        """End a span, with an error unless that is empty."""
        found = self._open.pop(msg_id, None)
        if found is None:
            return
        self._spans.open -= 1
        self._begin(found, "")
        if error:
            found.span.set_status(Status(StatusCode.ERROR, error))
        found.span.end()


def _metadata(msg: Message) -> dict[str, Any] | None:
    """Return the metadata of a request; None if it is not an object, or too large to parse."""
    if len(msg.metadata) > _METADATA_BYTES:
        return None
    try:
        found = json.loads(msg.metadata)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _without_output(execution: Execution) -> int:
    """Return the number of messages that each execution has: statuses, the input and the reply."""
    states = (execution.started, execution.count, execution.replied, execution.ended_seq)
    return sum(state is not None for state in states)
