"""Check the messages that one client receives.

Invariants for every request of which a client receives iopub messages:

- its lines are numbered from 0 and arrive completely and in order, in any number of messages;
- busy, execute_input and idle arrive once; a reply arrives once, and only at the client that sent
  the request;
- after a reconnect with `session_id`, unacknowledged messages may arrive again; acknowledged ones
  may not;
- after a reconnect with `since`, no message arrives again;
- markers count the messages that were dropped from the journal.

A client that connects during a request may miss its beginning. A request that was ended by a
restart, a kill or an interrupt may end early, but has no holes.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from tests.soak.expected import Cell, RequestLog
from tests.soak.findings import Findings

__all__ = ["SessionCheck"]

MARKER = re.compile(
    r"\[kbridge: (?:([\d,]+) messages?\b.* of output w(?:as|ere) dropped|.*\bmissing here)"
)
RESTARTED = frozenset({"starting", "restarting", "dead"})
_IDS = 20_000  # maximum number of stored message ids per connection
_CELLS = 2_000  # maximum number of stored requests
_HOLES = 3  # maximum number of holes that are named
_SLACK = 200  # messages that a marker may count beyond lines: statuses, replies to others


class SessionCheck:
    """The messages of one kernel that one session of one client receives.

    Parameters
    ----------
    who : str
        The name for the findings.
    session : str
        Its session_id.
    requests, findings
        The requests of all clients.
    kernel : str
        The kernel.
    calm : bool
        True if the soak does not disturb the kernel.
    since : bool
        True if the client names the last received message when it reconnects.
    narrow : bool
        True if the last received message may have been dropped. All remaining messages then arrive
        again, those with state before the marker.
    """

    def __init__(
        self,
        who: str,
        session: str,
        requests: RequestLog,
        findings: Findings,
        *,
        calm: bool,
        kernel: str = "",
        since: bool = False,
        narrow: bool = False,
    ) -> None:
        self.who = who
        self.session = session
        self.kernel = kernel
        self.calm = calm
        self.since = since
        self.narrow = narrow
        self.cells: dict[str, Cell] = {}
        self.restarts = 0  # number of restarts that the kernel announced
        self.last_id = ""
        self.deaths: list[str] = []
        self.missing = self.marked = self._marked_once = 0
        self._suspects: list[str] = []
        self._restarted = False  # True if this connection started with the oldest message
        self.unknown = 0  # markers without a number
        self.messages = self.lines = self.twice = 0
        self._requests = requests
        self._findings = findings
        self._ids: set[str] = set()
        self._order: deque[str] = deque()
        self._touched: set[str] = set()
        self._at_ping: dict[str, tuple[int, frozenset[str]]] = {}
        self._first = True
        # Received and marked messages that are acknowledged; those acknowledged after the last pong
        # arrives; and received messages that a marker may count again.
        self._acked = self._sent = (0, 0)
        self._unsure = 0
        self._before = ""  # the id of the message before the last one
        self._holes: list[str] = []  # the first of them
        self._began: set[str] = set()  # the messages with which the kernel itself began
        self._doubts = 0  # numbered pings that do not confirm the previous one

    def fault(self, what: str) -> None:
        self._findings.fault(self.who, what)

    def again(self, what: str) -> None:
        """Record an unexpected duplicate."""
        if not (self.since and self.narrow):
            self.fault(what)
        elif not self._restarted:
            self._suspects.append(what)  # a marker may still explain the gap

    def cell(self, msg_id: str) -> Cell | None:
        """Return the received messages of a request; None for an unknown request."""
        cell = self.cells.get(msg_id)
        if cell is None:
            request = self._requests.get(msg_id)
            if request is None:
                return None
            cell = self.cells[msg_id] = Cell(request)
            if len(self.cells) > _CELLS:
                del self.cells[next(iter(self.cells))]
        self._touched.add(msg_id)
        return cell

    # -- connections ------------------------------------------------------------------------

    def connected(self) -> None:
        """Start a connection: unacknowledged messages may arrive again."""
        self._touched.clear()
        self._at_ping.clear()
        self._suspects.clear()
        self._restarted = False
        if self._first or self.since:
            self._first = False
            return
        self._forget_ids()
        heard, self._marked_once = self._acked  # a marker is also sent again
        self._unsure += self.messages + self.lines - heard
        for cell in self.cells.values():
            cell.rewind = True
            cell.again = cell.seen - cell.acked[1]

    def ping(self, payload: bytes) -> None:
        """Process a numbered ping, which shows that the previous pong has arrived."""
        if not payload.isdigit():
            if payload:
                self.fault(f"a ping with {payload!r}")
            # The bridge takes its pong as a sign that a numbered ping was skipped.
            self._doubts = 2
            return
        if self._doubts:
            self._doubts -= 1
            self._at_ping.clear()
            self._sent = self._acked
        self._acked, self._sent = self._sent, (self.messages + self.lines, self._marked_once)
        for msg_id, acked in self._at_ping.items():
            if msg_id in self.cells:
                self.cells[msg_id].acked = acked
        self._at_ping = {
            # Of a cell whose lines are to come again, `next` is that of the previous connection.
            i: (cell.acked[0] if cell.rewind else cell.next, frozenset(cell.seen - cell.again))
            for i in self._touched
            if (cell := self.cells.get(i)) is not None
        }
        self._touched.clear()

    # -- messages ---------------------------------------------------------------------------

    def take(self, msg: dict[str, Any]) -> None:
        """Process a message."""
        self.messages += 1
        header = msg["header"]
        kind, content = header["msg_type"], msg["content"]
        if kind != "input_request":  # an open input request is sent again
            self._once(header["msg_id"], kind)
        self._before, self.last_id = self.last_id, header["msg_id"]
        parent = msg["parent_header"].get("msg_id", "")
        if kind == "stream":
            self._stream(parent, content)
        elif kind == "status":
            self._status(parent, content["execution_state"], header["msg_id"])
        elif kind == "execute_input":
            self._event(parent, kind)
        elif kind.endswith("_reply"):
            self._reply(parent, content)

    def _once(self, msg_id: str, kind: str) -> None:
        if msg_id in self._ids:
            self.twice += 1
            self.again(f"{kind} {msg_id} came twice")
        self._ids.add(msg_id)
        self._order.append(msg_id)
        if len(self._order) > _IDS:
            self._ids.discard(self._order.popleft())

    def _stream(self, parent: str, content: dict[str, Any]) -> None:
        text = content["text"]
        marker = MARKER.search(text) if content["name"] == "stderr" else None
        if marker:
            self._mark(marker[1], text)
            return
        cell = self.cell(parent)
        if cell is None or not cell.request.lines or content["name"] != "stdout":
            return
        if not text.endswith("\n"):
            self.fault(f"a message that ends in mid-line: {text[-60:]!r}")
        for line in text.splitlines():
            self._line(cell, line)

    def _mark(self, count: str | None, text: str) -> None:
        """Process a marker, which may have the number of missing messages.

        Without a number, the bridge no longer has the message that the client named. It starts with
        the oldest message, so all may arrive again.
        """
        if count:
            self.marked += int(count.replace(",", ""))
            self._marked_once += int(count.replace(",", ""))
            return
        if not self.since:
            self.fault(f"a marker without a count, for a client whose place is known: {text}")
        self.unknown += 1
        self._restarted = True
        self._suspects.clear()
        self._forget_ids()

    def _forget_ids(self) -> None:
        self._ids.clear()
        self._order.clear()

    def _line(self, cell: Cell, line: str) -> None:
        self.lines += 1
        number = int(line[1:9]) if line[:1] == "#" and line[1:9].isdigit() else -1
        if number < 0 or len(line) + 1 != cell.request.size:
            self.fault(f"a mangled line: {line[:60]!r}")
            return
        if "idle" in cell.seen - cell.again:
            self.again(f"line {number} after the idle of {cell.request.msg_id}")
        if not cell.whole and cell.top == 0:
            cell.next = number  # connected during the request; a marker may count earlier messages
            self._unsure += number
        rewind, cell.rewind = cell.rewind, False
        if number < cell.next:
            self.twice += cell.next - number
            if not rewind:
                self.again(f"line {number} after line {cell.next - 1}")
            elif number < cell.acked[0]:
                self.fault(
                    f"line {number} came again, though {cell.acked[0]} were acknowledged;"
                    f" deaths: {', '.join(self.deaths[-4:])}"
                )
        else:
            self._miss(cell, number)
        cell.next = number + 1
        cell.top = max(cell.top, cell.next)

    def _miss(self, cell: Cell, stop: int) -> None:
        """Count the lines before `stop` that have not arrived."""
        start = max(cell.next, cell.top)
        if start >= stop:
            return
        self.missing += stop - start
        if len(self._holes) < _HOLES:
            # Kernels number their messages: their ids tell if messages are missing, too.
            self._holes.append(
                f"{start} to {stop - 1} of {cell.request.msg_id}, between the messages"
                f" {self._before} and {self.last_id}"
            )

    def _status(self, parent: str, state: str, msg_id: str) -> None:
        if not parent and state in RESTARTED:
            if self.calm and state == "starting":
                # Kernels send it themselves when they begin; a reconnect may repeat it.
                if not any("idle" in c.seen for c in self.cells.values()):
                    self._began.add(msg_id)
                if msg_id in self._began:
                    return
            self.restarts += 1
            if self.calm:
                self.fault(f"{state}, though nobody touched the kernel")
        elif state == "busy":
            cell = self._event(parent, state)
            if cell is not None and cell.top == 0:
                cell.whole = True
        elif state == "idle":
            cell = self._event(parent, state)
            if cell is not None:
                self._end(cell)

    def _reply(self, parent: str, content: dict[str, Any]) -> None:
        cell = self.cell(parent)
        if cell is None:
            return
        if cell.request.session != self.session:
            if self.calm:
                self.fault(f"a reply to {parent}, which is {cell.request.session}'s")
            return
        cell.status = str(content.get("status"))
        if self.calm and cell.status != "ok":
            self.fault(f"the reply to {parent} is {cell.status!r}")
        self._event(parent, "reply")
        self._end(cell)

    def _event(self, parent: str, what: str) -> Cell | None:
        cell = self.cell(parent)
        if cell is None:
            return None
        if what in cell.seen:
            self.twice += 1
            if what not in cell.again:
                self.again(f"{what} of {parent} came twice")
        cell.again.discard(what)
        cell.seen.add(what)
        return cell

    def _end(self, cell: Cell) -> None:
        """Count the missing lines at the end of a request that was not interrupted."""
        mine = cell.request.session == self.session
        over = cell.done and cell.status == "ok" if mine else "idle" in cell.seen and self.calm
        if not over or cell.counted:
            return
        cell.counted = True
        if cell.whole or mine:
            self._miss(cell, cell.request.lines)
        else:
            self._unsure += max(0, cell.request.lines - cell.top)

    # -- the balance ------------------------------------------------------------------------

    def settle(self) -> None:
        """Check that markers account for missing messages; call it after the last message."""
        for suspect in self._suspects:
            self.fault(suspect)
        if self.unknown:
            return
        if self.missing > self.marked:
            self.fault(
                f"{self.missing:,} lines are missing, and markers account for {self.marked:,};"
                f" lines {'; '.join(self._holes)}; deaths: {', '.join(self.deaths[-4:])};"
                f" restarts: {self.restarts}"
            )
        # Of some requests, even the messages with state were dropped, so the client does not know
        # them.
        unheard = self._requests.lines_of_others(self.kernel, self.cells)
        if self.calm and self._marked_once > self.missing + self._unsure + unheard + _SLACK:
            self.fault(
                f"markers count {self._marked_once:,}, but {self.missing:,} lines are missing and"
                f" {self._unsure:,} were not acknowledged"
            )
