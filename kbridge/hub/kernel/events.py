"""The events that a `KernelConnection` reports; all methods are called on the event loop."""

from __future__ import annotations

from typing import Protocol

from kbridge.wire.message import Message

__all__ = ["KernelListener"]


class KernelListener(Protocol):
    """Receives what a `KernelConnection` has to report."""

    def on_output(self, msg: Message, msg_type: str, key: int, now: float) -> None:
        """Take an iopub message.

        Parameters
        ----------
        msg, msg_type : Message, str
            The message and its type.
        key : int
            `kbridge.wire.message.message_key` of its header.
        now : float
            Monotonic seconds; the messages of one batch share it.
        """

    def on_texts(self, texts: list[Message], keys: list[int], now: float) -> None:
        """Take stream messages that follow each other and have the same parent header.

        Most messages of a kernel are such; they are passed on together to save calls.

        Parameters
        ----------
        texts : list of Message
            At least two messages.
        keys : list of int
            The key of each message, as in `on_output`.
        now : float
            Monotonic seconds.
        """

    def on_reply(self, msg: Message, msg_type: str, key: int, client: int, now: float) -> None:
        """Take a message on shell, control or stdin.

        Parameters
        ----------
        msg, msg_type, key : Message, str, int
            The message, its type and its key, as in `on_output`.
        client : int
            The number of the client that made the request, or `kbridge.flow.journal.EVERYONE`
            if that is not known.
        now : float
            Monotonic seconds.
        """

    def on_notice(self, msg: Message) -> None:
        """Take an iopub message that the bridge made in the name of the kernel."""

    def on_replaced(self, waiting: frozenset[str]) -> None:
        """Another process answers on the same ports; no restart was announced.

        It will be sent the requests with the ids in `waiting`.
        """

    def on_drained(self) -> None:
        """All messages of this wake-up were delivered; this is the time to write them out."""

    def on_ready(self) -> None:
        """Requests are sent to the kernel from now on."""

    def on_disconnected(self) -> None:
        """The iopub connection to the kernel was lost."""
