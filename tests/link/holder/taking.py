"""Take connections over from a holder that may have been started just now."""

from __future__ import annotations

from kbridge.link.holder.client import HeldConnection, Holder
from tests.support.waiting import eventually

__all__ = ["take_over"]


def take_over(holder: Holder) -> list[HeldConnection]:
    """Take over the connections as soon as the holder listens.

    Its socket file is there some time before others can connect to it.
    """

    def take() -> list[HeldConnection]:
        try:
            return holder.take()
        except (FileNotFoundError, ConnectionRefusedError):
            return []

    return eventually(take, "the holder listens")
