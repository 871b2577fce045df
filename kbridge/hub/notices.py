"""Messages that the bridge itself sends: probes to kernels, and notices to clients."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from kbridge.flow.journal import Gap
from kbridge.hub.clock import Clock
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

__all__ = ["BROKEN", "FULL", "INTERRUPTED", "Notices"]

_RAISE: Final = "Raise journal_limit (unread output) or history_limit (output already delivered)"
_RAISE_DISK: Final = "If the log of the server shows no failing disk, raise journal_disk_limit"

INTERRUPTED: Final = (
    "the connection to the kernel was interrupted while this cell was running. Output may be"
    " missing here. The log of the server may say why."
)
"""The connection broke while a bridge ran."""

BROKEN: Final = (
    "the connection to the kernel broke while no server was running, as a tunnel does that ends"
    " with its server. Output may be missing here."
)
"""The connection that an earlier bridge has left had ended before this bridge began."""

FULL: Final = (
    "while no server was running, output of kernels was stored up to the limit journal_disk_total,"
    " or until the disk was full. Output of that time may be missing from here on."
)
"""The connection goes on, but the kernel may have dropped output."""


class Notices:
    """Makes the messages that the bridge itself sends.

    Parameters
    ----------
    clock : Clock
        The source of the time.
    adopted : bool
        True if the kernel ran before this bridge did.
    on_disk : bool
        True if output is also kept on disk.
    following : bool
        True if another replica serves the kernel at first.
    because : str
        A clause that says why output is missing that the kernel sent while no bridge ran; empty if
        that is not known.

    Attributes
    ----------
    markers : str
        The beginning of the ids of markers; the rest is the number of the frame before the marker.
    mark : bytes
        A part of the parent header of every message that belongs to a probe.
    adopted : bool
        As above.
    interruption : str
        The text of the next marker of `disconnected`; that of later markers is `INTERRUPTED`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        adopted: bool = False,
        on_disk: bool = False,
        because: str = "",
        following: bool = False,
    ) -> None:
        self._clock = clock
        self._because = f", because {because}" if because else ""
        self._advice = _RAISE_DISK if on_disk else _RAISE
        self.adopted = adopted
        self._following = following
        self.interruption = INTERRUPTED
        self._session = secrets.token_hex(16)
        self._probes = 0
        self._kernel_session = ""
        self.markers = f"{self._session}_behind_"
        self._prefix = f"{self._session}_probe_"
        self.mark = self._prefix.encode()

    def speak_as(self, session: str) -> None:
        """Set the session of the kernel's process, for messages in the kernel's name.

        JupyterLab takes another session for another process, and drops the messages of the old one
        that it has yet to handle.
        """
        self._kernel_session = session

    @property
    def speaks_as_kernel(self) -> bool:
        """True if the session of the kernel's process is known."""
        return bool(self._kernel_session)

    def request(self, channel: Channel, msg_type: str, content: Mapping[str, Any]) -> Message:
        """Return a request of the bridge itself."""
        return self._build(channel, msg_type, content)

    def probe(self, channel: Channel) -> Message:
        """Return a kernel_info_request that tests if the kernel answers."""
        self._probes += 1
        return self._build(
            channel, "kernel_info_request", {}, msg_id=f"{self._prefix}{self._probes}"
        )

    def status(
        self, execution_state: str, parent_header: bytes = b"{}", *, reason: str = ""
    ) -> Message:
        """Return a status message in the name of the kernel, with the reason if there is one."""
        content = {"execution_state": execution_state}
        if reason:
            content["reason"] = reason
        return self._build(Channel.IOPUB, "status", content, parent_header=parent_header)

    def stderr(self, text: str, parent_header: bytes = b"{}", msg_id: str | None = None) -> Message:
        """Return a line on stderr for the output of the cell that `parent_header` names."""
        return self._build(
            Channel.IOPUB,
            "stream",
            {"name": "stderr", "text": text + "\n"},
            parent_header=parent_header,
            msg_id=msg_id,
        )

    def clear_output(self, parent_header: bytes) -> Message:
        """Return a message that clears the output of the cell that `parent_header` names."""
        return self._build(
            Channel.IOPUB, "clear_output", {"wait": False}, parent_header=parent_header
        )

    def lost(self, gap: Gap, parent_header: bytes, seq: int) -> Message:
        """Return the marker of a gap in a client's output, behind frame `seq` of the journal."""
        return self.stderr(
            f"[kbridge: {self._explain(gap, seq)}]", parent_header, msg_id=f"{self.markers}{seq}"
        )

    def _explain(self, gap: Gap, seq: int) -> str:
        """Return the text of a marker: the cause, and a setting that helps.

        A gap of unknown size begins with a message that this journal does not know. If the journal
        still has its first frame, that message is older than this bridge.
        """
        if gap.messages:
            several = gap.messages > 1
            nbytes = f" ({gap.nbytes:,} bytes)" if gap.nbytes else ""
            return (
                f"{gap.messages:,} message{'s' if several else ''}{nbytes} of output"
                f" {'were' if several else 'was'} dropped because this client fell behind."
                f" {self._advice} to keep more."
            )
        if self._following and seq < 0:
            return (
                "another replica of the server took over. Output of the kernel from before it"
                " followed the kernel is missing here."
            )
        if self.adopted and seq < 0:
            return (
                "the server was restarted. Output that the kernel sent while no server was running"
                f" is missing here{self._because}."
            )
        cause = "the server was restarted, or " if self.adopted else ""
        return (
            f"output may be missing here: {cause}this client was away for so long that its place"
            f" is no longer known. {self._advice} to keep more."
        )

    def taken_over(self, parent_header: bytes) -> Message:
        """Return the marker in a cell that was already running when this bridge connected."""
        if self._following:
            return self.stderr(
                "[kbridge: another replica of the server took over, which began to follow the"
                " kernel here, while this cell was running. Output from before is missing.]",
                parent_header,
            )
        return self.stderr(
            "[kbridge: the server was restarted while this cell was running. Output that the"
            f" kernel sent while no server was running is missing here{self._because}.]",
            parent_header,
        )

    def not_run(self, parent_header: bytes) -> Message:
        """Return the marker in a cell that the kernel has never received."""
        return self.stderr(
            "[kbridge: this cell was not run, because the server ended before the kernel received"
            " it. Run it again.]",
            parent_header,
        )

    def ended(self, reason: str, parent_header: bytes) -> Message:
        """Return the marker in a cell whose kernel has ended before the cell did."""
        return self.stderr(f"[kbridge: {reason}]", parent_header)

    def disconnected(self, parent_header: bytes) -> Message:
        """Return the marker in a cell that ran while iopub was disconnected."""
        text, self.interruption = self.interruption, INTERRUPTED
        return self.stderr(f"[kbridge: {text}]", parent_header)

    def dropped(self, count: int, parent_header: bytes) -> Message:
        """Return the notice of messages that the kernel itself has dropped."""
        return self.stderr(
            f"[kbridge: the kernel seems to have dropped about {count:,} messages of output,"
            " because it made them faster than it could send them. The machine may be overloaded;"
            " fewer and longer messages help, such as print without flush=True.]",
            parent_header,
        )

    def reply(self, request: bytes, content: Mapping[str, Any]) -> Message:
        """Return a reply to the execute request with that header, in the name of the kernel."""
        return self._build(Channel.SHELL, "execute_reply", content, parent_header=request)

    def _build(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent_header: bytes = b"{}",
        msg_id: str | None = None,
    ) -> Message:
        in_its_name = channel is Channel.IOPUB or parent_header != b"{}"
        return build(
            channel,
            msg_type,
            dict(content),
            session=(self._kernel_session if in_its_name else "") or self._session,
            parent_header=parent_header,
            msg_id=msg_id,
            date=self._clock.iso(),
        )
