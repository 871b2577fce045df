"""Find out how many messages a kernel made and did not send.

A kernel's PUB drops output without a trace when its queue is full, which holds 1,000 messages. On
an overloaded machine that happens before the output reaches a socket that the bridge could read:
the thread of libzmq in the kernel does not get the processor in time.

Kernels that use the `Session` of jupyter_client, as ipykernel does, count their messages on all
channels: the id is `SESSION_PROCESS_NUMBER`. So between two idle statuses, the numbers must have
grown by the number of messages that arrived. Ids of another form are not compared.

Source: `jupyter_client.session.Session.msg_id`.
"""

from __future__ import annotations

from typing import Final

from kbridge.wire.message import scan

__all__ = ["UnsentMessages"]

_NOISE: Final = 4
"""Messages that may be missing although none was dropped: replies that are not read yet, and
replies to clients that are connected to the kernel directly."""

_QUEUE: Final = 500
"""Messages that a PUB accepts in any case. In fewer messages, those that are missing have another
cause: a hook of IPython has held them back, or a client that is connected directly was asked for
input."""

_DIGITS: Final = 15
"""Maximum length of a number in an id; longer ones are not compared."""


class UnsentMessages:
    """Compares the numbers of a kernel's messages with the number of messages that arrived.

    Attributes
    ----------
    arrived : int
        Messages of the kernel on all channels; raised by the owner.
    total : int
        Messages that the kernel has dropped since the beginning.
    """

    __slots__ = ("_checked", "_number", "_process", "_unreported", "arrived", "total")

    def __init__(self) -> None:
        self.arrived = 0
        self.total = 0
        self._process = ""  # the ids of the process without the number
        self._number = 0  # of the last idle status
        self._checked = 0  # `arrived` then, with the idle status
        self._unreported = 0

    def reset(self) -> None:
        """Compare nothing across this moment: the connection begins or ends."""
        self._process = ""
        self._unreported = 0

    def check(self, header: bytes) -> None:
        """Compare at an idle status, which is the last message that has arrived.

        Parameters
        ----------
        header : bytes
            The header of the status.
        """
        process, number = _split(scan(header, "msg_id"))
        if process and process == self._process:
            made = number - self._number
            missing = made - (self.arrived - self._checked)
            if made > _QUEUE and missing > _NOISE:
                self._unreported += missing
                self.total += missing
        self._process, self._number, self._checked = process, number, self.arrived

    def take(self) -> int:
        """Return the number of dropped messages that were not returned before."""
        count, self._unreported = self._unreported, 0
        return count


def _split(msg_id: str) -> tuple[str, int]:
    """Return the process and the number of an id; an empty process for ids of another form."""
    process, _, number = msg_id.rpartition("_")
    pid = process.rpartition("_")[2]
    if not (_is_number(pid) and _is_number(number)):
        return "", 0
    return process, int(number)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS
