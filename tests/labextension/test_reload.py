"""A page that is reloaded at any message ends with the outputs of one that never was.

The kernel and the sockets are in memory, the hub is real. The page that was never reloaded is
JupyterLab's own kernel connection and output areas, which receive all messages. The reloaded page
is `labextension/src/feed.ts`, which receives the frames of websockets with `parents`, and changes
JupyterLab's own output models. Both run in Node, see `page/page.js`.
"""

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kbridge.hub.settings import HubSettings
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig, frames_of
from tests.support.require import require

PAGE = Path(__file__).parent / "page"
CELLS = ["a", "b", "c"]
FILE = [{"output_type": "stream", "name": "stdout", "text": "from the file\n"}]
JUNK = "x" * 200_000  # more than a websocket is sent at once, so that output is coalesced


class Page:
    """The Node process."""

    def __init__(self, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [require("node"), str(bundle / "main.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PAGE,
            text=True,
        )

    def show(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of the two pages."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        while True:
            line = self._process.stdout.readline()
            assert line, "the page has ended"
            if line.startswith("{"):  # JupyterLab logs to the console
                answer: dict[str, Any] = json.loads(line)
                return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    npm, _ = require("npm"), require("node")
    if not (PAGE / "node_modules" / ".package-lock.json").exists():
        _run(npm, "ci", "--ignore-scripts")
    _run(npm, "run", "--silent", "build")
    page = Page(PAGE / "build")
    yield page
    page.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


# -- histories of a kernel ----------------------------------------------------------------------

texts = st.text("ab\r\b\n", max_size=6)
display_ids = st.sampled_from(["d1", "d2"])
actions = st.one_of(
    st.tuples(st.just("stream"), st.sampled_from(["stdout", "stderr"]), texts),
    st.tuples(st.just("display"), st.none() | display_ids),
    st.tuples(st.just("update"), display_ids),
    st.tuples(st.just("clear"), st.booleans()),
    st.tuples(st.just("result")),  # without a display id: no kernel is known to send one
    st.tuples(st.just("input")),
    st.tuples(st.just("junk")),
)
executions = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(CELLS),
        "actions": st.lists(actions, max_size=8),
        "end": st.sampled_from(["ok", "ok", "error", "aborted", "idle first"]),
        "ahead": st.integers(0, 3),  # requests that wait when it is sent
    }
)
histories = st.lists(executions, min_size=1, max_size=6)


class History:
    """Requests to a kernel and its messages, in order."""

    def __init__(self, rig: Rig, chosen: list[dict[str, Any]]) -> None:
        self.rig = rig
        self.events: list[tuple[str, Any]] = []
        self.requests: list[Message] = []
        self._shown = 0
        submitted = 0
        for i, execution in enumerate(chosen):
            latest = max([i, *(j for j in range(i, len(chosen)) if j - chosen[j]["ahead"] <= i)])
            while submitted <= latest:
                self._submit(submitted, chosen[submitted]["cell"])
                submitted += 1
            self._run(i, execution)

    def _submit(self, i: int, cell: str) -> None:
        request = self.rig.message(
            Channel.SHELL,
            "execute_request",
            {"code": f"code {i}", "silent": False},
            metadata={"cellId": cell},
            msg_id=f"request_{i}",
        )
        self.requests.append(request)
        self.events.append(("submit", {"i": i, "cell": cell}))

    def _run(self, i: int, execution: dict[str, Any]) -> None:
        parent = self.requests[i].header
        end = execution["end"]
        say = self._say
        say(Channel.IOPUB, "status", {"execution_state": "busy"}, parent)
        if end != "aborted":
            say(
                Channel.IOPUB,
                "execute_input",
                {"code": f"code {i}", "execution_count": i + 1},
                parent,
            )
            for action in execution["actions"]:
                self._act(action, parent)
        idle = (Channel.IOPUB, "status", {"execution_state": "idle"}, parent)
        if end == "idle first":
            say(*idle)
        reply: dict[str, Any] = {"status": "ok", "execution_count": i + 1, "payload": []}
        if end == "error":
            error = {"ename": "E", "evalue": "", "traceback": ["E"]}
            say(Channel.IOPUB, "error", error, parent)
            reply = {"status": "error", "execution_count": i + 1, **error}
        elif end == "aborted":
            reply = {"status": "aborted"}
        say(Channel.SHELL, "execute_reply", reply, parent)
        if end != "idle first":
            say(*idle)

    def _act(self, action: tuple[Any, ...], parent: bytes) -> None:
        kind, *more = action
        self._shown += 1
        shown: dict[str, Any] = {"data": {"text/plain": f"shown {self._shown}"}, "metadata": {}}
        if kind == "stream":
            self._say(Channel.IOPUB, "stream", {"name": more[0], "text": more[1]}, parent)
        elif kind == "junk":
            self._say(Channel.IOPUB, "stream", {"name": "stdout", "text": JUNK}, parent)
        elif kind == "clear":
            self._say(Channel.IOPUB, "clear_output", {"wait": more[0]}, parent)
        elif kind == "input":
            self._say(Channel.STDIN, "input_request", {"prompt": "?", "password": False}, parent)
        elif kind == "result":
            result = {**shown, "execution_count": 1}
            self._say(Channel.IOPUB, "execute_result", result, parent)
        else:
            msg_type = "display_data" if kind == "display" else "update_display_data"
            transient = {"display_id": more[0]} if more[0] else {}
            self._say(Channel.IOPUB, msg_type, {**shown, "transient": transient}, parent)

    def _say(self, channel: Channel, msg_type: str, content: dict[str, Any], parent: bytes) -> None:
        self.events.append(("message", self.rig.message(channel, msg_type, content, parent)))


def as_json(message: Message) -> dict[str, Any]:
    return {
        "channel": message.channel.value,
        "header": json.loads(message.header),
        "parent_header": json.loads(message.parent_header),
        "metadata": json.loads(message.metadata),
        "content": json.loads(message.content),
    }


# -- the page that is reloaded ------------------------------------------------------------------


class ReloadedPage:
    """The websockets of the reloaded page, and the steps that it takes."""

    def __init__(self, rig: Rig, stalls: bool) -> None:
        self.rig = rig
        self.steps: list[dict[str, Any]] = []
        self._stalls = stalls  # it reads only when it shows something
        self._clients: list[tuple[Any, int]] = []

    def restore(self, executions: dict[str, str]) -> None:
        """Open a websocket for some executions, by their cells."""
        self.steps.append({"replay": len(self._clients), "attach": executions})
        client, _ = self.rig.attach(
            f"replay {len(self._clients)}", silent=False, parents=list(executions)
        )
        client.stalled = self._stalls
        self._clients.append((client, 0))

    def release(self, execution: str) -> None:
        self.steps.append({"release": execution})

    async def show(self) -> None:
        """Read all frames, and change the page."""
        for client, _ in self._clients:
            if client.stalled:
                client.resume()
        await self.read()
        self.steps.append({"flush": True})
        for client, _ in self._clients:
            client.stalled = self._stalls

    async def read(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        for replay, (client, read) in enumerate(self._clients):
            frames = [payload for opcode, payload in frames_of(client.written) if opcode == 2]
            if frames[read:]:
                encoded = [base64.b64encode(frame).decode() for frame in frames[read:]]
                self.steps.append({"replay": replay, "frames": encoded})
                self._clients[replay] = (client, len(frames))


async def run(
    chosen: list[dict[str, Any]], reload_at: int, shows: list[bool], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the case for the two pages."""
    rig = Rig(HubSettings(limit_rate=False))
    try:
        rig.prove()
        history = History(rig, chosen)
        reload_at %= len(history.events) + 1
        _, first = rig.attach("first")
        _, other = rig.attach("other")  # sends the requests after the reload
        page = ReloadedPage(rig, options["stalls"])
        newest: dict[str, str] = {}
        events = []
        for at, (kind, event) in enumerate(history.events):
            if at == reload_at:
                rig.hub.detach(first)
                page.restore({execution: cell for cell, execution in newest.items()})
            if kind == "submit":
                request = history.requests[event["i"]]
                rig.hub.submit(first if at < reload_at else other, request)
                execution, cell = f"request_{event['i']}", event["cell"]
                if at >= reload_at:
                    if cell in newest:
                        page.release(newest[cell])
                    page.restore({execution: cell})
                newest[cell] = execution
                events.append({"submit": {"cell": cell, "id": execution, "code": "x"}})
            else:
                rig.say(event)
                events.append({"message": as_json(event)})
                if at >= reload_at and shows[at % len(shows)]:
                    await page.show()
        if reload_at == len(history.events):
            rig.hub.detach(first)
            page.restore({execution: cell for cell, execution in newest.items()})
        for _ in range(20):
            await page.show()
        file = {cell: FILE for cell in newest if options["file"]}
        return {
            "cells": CELLS,
            "events": events,
            "reload": {"file": file, "steps": page.steps},
            "newest": newest,
        }
    finally:
        await rig.hub.aclose()


def one_run(*actions: tuple[Any, ...], cell: str = "a", ahead: int = 0) -> dict[str, Any]:
    return {"cell": cell, "actions": list(actions), "end": "ok", "ahead": ahead}


_TEXT = ("stream", "stdout", "a\n")
_LIVE = {"stalls": False, "file": True}

# Histories that random ones seldom contain: what clear_output and display ids mean together.


@pytest.mark.timeout(900)  # npm ci, once
@example([one_run(("display", "d1"), ("clear", False), _TEXT, ("update", "d1"))], 1, [True], _LIVE)
@example([one_run(("display", "d1"), ("clear", True), _TEXT, ("update", "d1"))], 1, [True], _LIVE)
@example([one_run(("display", "d1"), ("clear", True), ("update", "d1"), _TEXT)], 1, [False], _LIVE)
@example([one_run(_TEXT, ("clear", True)), one_run(_TEXT, cell="b")], 1, [True], _LIVE)
@example(
    [one_run(_TEXT, ("display", "d1")), one_run(("display", "d1"), cell="b")], 2, [True], _LIVE
)
@example([one_run(("display", "d1"), ("display", "d1"), ("update", "d1"))], 1, [True], _LIVE)
@example([one_run(_TEXT, ("input",), _TEXT, ("display", None), _TEXT)], 3, [True, False], _LIVE)
@example([one_run(_TEXT), one_run(("display", "d1"), ahead=1)], 4, [True], _LIVE)
@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    histories,
    st.integers(0, 200),
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.fixed_dictionaries({"stalls": st.booleans(), "file": st.booleans()}),
)
def test_a_page_reloaded_at_any_message_ends_like_one_that_never_was(
    page: Page,
    chosen: list[dict[str, Any]],
    reload_at: int,
    shows: list[bool],
    options: dict[str, bool],
) -> None:
    case = asyncio.run(run(chosen, reload_at, shows, options))
    shown = page.show(case)
    assert shown["restored"]["outputs"] == shown["reference"]
    ends = {f"request_{i}": execution["end"] for i, execution in enumerate(chosen)}
    for cell, execution in case["newest"].items():
        end = shown["restored"]["counts"][cell]
        assert end["over"]
        number = int(execution.rpartition("_")[2])
        if ends[execution] != "aborted":
            assert end["count"] == number + 1
            assert end["code"] == f"code {number}"
