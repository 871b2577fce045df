"""Traces of executions, on a hub with a kernel in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kbridge.hub.settings import HubSettings
from kbridge.tracing import spans as module
from kbridge.tracing.spans import ExecutionSpans
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SAYS: dict[str, tuple[Channel, str, dict[str, Any]]] = {
    "busy": (Channel.IOPUB, "status", {"execution_state": "busy"}),
    "idle": (Channel.IOPUB, "status", {"execution_state": "idle"}),
    "input": (Channel.IOPUB, "execute_input", {"code": "1", "execution_count": 7}),
    "print": (Channel.IOPUB, "stream", {"name": "stdout", "text": "a\nb\n"}),
    "error": (Channel.IOPUB, "error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    "reply": (Channel.SHELL, "execute_reply", {"status": "ok", "execution_count": 7}),
}


class Traced:
    """A hub whose executions are traced."""

    def __init__(self, *, ready: bool = True) -> None:
        provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = ExecutionSpans(provider.get_tracer("a-test"))
        self.rig = Rig(HubSettings(limit_rate=False))
        self.rig.environment = replace(self.rig.environment, tracing=self.tracing)
        self.rig.hub = self.rig.open(HubSettings(limit_rate=False))
        if ready:
            self.rig.prove()
        _, self.cursor = self.rig.attach("a-page")

    def ask(self, msg_id: str = "ask", metadata: bytes = b"{}") -> Message:
        content = {"code": "a_secret = 1"}
        msg = self.rig.message(Channel.SHELL, "execute_request", content, msg_id=msg_id)
        msg = msg._replace(metadata=metadata)
        self.rig.hub.submit(self.cursor, msg)
        return msg

    def say(self, asked: Message, *kinds: str) -> None:
        for kind in kinds:
            channel, msg_type, content = SAYS[kind]
            self.rig.say(self.rig.message(channel, msg_type, content, asked.header))

    def sent(self) -> list[Message]:
        """The requests to execute code that the kernel has received."""
        received = self.rig.sent(Channel.SHELL)
        return [msg for msg in received if msg.msg_type == "execute_request"]

    def spans(self) -> list[ReadableSpan]:
        """The spans of requests, without their children."""
        found = self._exporter.get_finished_spans()
        return [span for span in found if span.name == "execute_request"]

    def stages(self) -> list[ReadableSpan]:
        """The children."""
        return [span for span in self._exporter.get_finished_spans() if span not in self.spans()]


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


async def test_an_execution_is_one_span_with_events() -> None:
    traced = Traced()
    asked = traced.ask()
    traced.say(asked, "busy", "input")
    assert traced.spans() == []
    traced.say(asked, "print", "print", "reply", "idle")
    [span] = traced.spans()
    assert span.name == "execute_request"
    assert events(span) == ["sent", "busy", "first output", "reply", "idle"]
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "kbridge.kernel_id": "a-kernel",
        "kbridge.execution_id": "ask",
        "kbridge.execution.state": "done",
        "kbridge.execution.count": 7,
        "kbridge.execution.code_bytes": 12,
        "kbridge.execution.output_bytes": span.attributes["kbridge.execution.output_bytes"],
        "kbridge.execution.messages": 6,
    }
    assert span.status.status_code == StatusCode.UNSET
    assert "a_secret" not in span.to_json()
    assert traced.tracing.open == 0


async def test_the_stages_of_an_execution_are_children_of_its_span() -> None:
    traced = Traced(ready=False)
    asked = traced.ask(metadata=json.dumps({"traceparent": PARENT}).encode())
    assert traced.stages() == []
    traced.rig.prove()
    assert [stage.name for stage in traced.stages()] == ["wait"]
    traced.say(asked, "busy", "input")
    assert [stage.name for stage in traced.stages()] == ["wait", "queue"]
    traced.say(asked, "print", "reply", "idle")
    [span], stages = traced.spans(), traced.stages()
    assert [stage.name for stage in stages] == ["wait", "queue", "run"]
    context = span.get_span_context()
    assert context is not None
    for stage in stages:
        assert stage.parent is not None
        assert (stage.parent.trace_id, stage.parent.span_id) == (context.trace_id, context.span_id)
    ends = [stage.end_time for stage in stages]
    begins = [stage.start_time for stage in stages[1:]]
    assert all(
        a is not None and b is not None and a <= b for a, b in zip(ends, begins, strict=False)
    )


async def test_the_end_of_the_kernel_ends_the_present_stage() -> None:
    traced = Traced()
    traced.say(traced.ask(), "busy")
    await traced.rig.hub.aclose()
    assert [stage.name for stage in traced.stages()] == ["wait", "queue", "run"]


async def test_an_execution_without_output_has_no_event_for_it() -> None:
    traced = Traced()
    traced.say(traced.ask(), "busy", "input", "idle", "reply")
    [span] = traced.spans()
    assert events(span) == ["sent", "busy", "idle", "reply"]


async def test_an_error_of_the_code_is_an_error_without_its_text() -> None:
    traced = Traced()
    traced.say(traced.ask(), "busy", "error", "idle", "reply")
    [span] = traced.spans()
    assert span.status.status_code == StatusCode.ERROR
    assert "first output" in events(span)
    assert "ename" not in span.to_json()


async def test_a_request_waits_for_the_kernel() -> None:
    traced = Traced(ready=False)
    asked = traced.ask()
    assert traced.tracing.open == 1
    traced.rig.prove()
    traced.say(asked, "busy", "idle", "reply")
    [span] = traced.spans()
    assert events(span)[:2] == ["sent", "busy"]


async def test_the_context_is_taken_from_the_metadata_and_handed_on() -> None:
    traced = Traced()
    metadata = {"cellId": "a-cell", "traceparent": PARENT, "tracestate": "vendor=1", "n": 1}
    asked = traced.ask(metadata=json.dumps(metadata).encode())
    [received] = traced.sent()
    assert received.header == asked.header
    assert received.content == asked.content
    traced.say(asked, "busy", "idle", "reply")
    [span] = traced.spans()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    found = json.loads(received.metadata)
    context = span.get_span_context()
    assert context is not None
    assert found["traceparent"] == f"00-{PARENT[3:35]}-{context.span_id:016x}-01"
    assert (found["cellId"], found["tracestate"], found["n"]) == ("a-cell", "vendor=1", 1)
    assert traced.rig.hub.executions.get("ask").cell == "a-cell"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b"null",
        b"not JSON",
        b"[" * 2000,
        b'{"large": "' + b"x" * (1 << 16) + b'"}',
    ],
)
async def test_other_metadata_is_handed_on_as_it_is(metadata: bytes) -> None:
    traced = Traced()
    asked = traced.ask(metadata=metadata)
    [received] = traced.sent()
    assert received.metadata == metadata
    traced.say(asked, "busy", "idle", "reply")
    [span] = traced.spans()
    assert span.parent is None


@pytest.mark.parametrize("value", ["nonsense", "00-0-0-00", 7, None, ["a"]])
async def test_a_context_that_is_not_valid_begins_a_new_trace(value: Any) -> None:
    traced = Traced()
    traced.say(
        traced.ask(metadata=json.dumps({"traceparent": value}).encode()), "busy", "idle", "reply"
    )
    [span] = traced.spans()
    assert span.parent is None


async def test_the_end_of_the_kernel_ends_all_spans() -> None:
    traced = Traced()
    traced.ask("one")
    traced.ask("two")
    await traced.rig.hub.aclose()
    assert [span.status.status_code for span in traced.spans()] == [StatusCode.ERROR] * 2
    assert traced.tracing.open == 0


async def test_an_id_that_is_used_again_begins_another_span() -> None:
    traced = Traced()
    traced.ask()
    traced.say(traced.ask(), "busy", "idle", "reply")
    assert len(traced.spans()) == 2
    assert traced.tracing.open == 0


async def test_open_spans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 2)
    traced = Traced()
    asked = [traced.ask(f"ask-{number}") for number in range(3)]
    assert traced.tracing.open == 2
    assert "traceparent" not in json.loads(traced.sent()[-1].metadata)
    for each in asked:
        traced.say(each, "busy", "idle", "reply")
    assert len(traced.spans()) == 2
    assert traced.tracing.open == 0
