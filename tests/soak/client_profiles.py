"""What kinds of cooperative clients there are."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROFILES", "ClientProfile"]


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """What kind of client it is.

    Attributes
    ----------
    name : str
        For the table.
    window, bite : int
        Its receive buffer (0: the system's), and bytes of one read.
    pause : float
        Seconds before a read, at most.
    deaths : tuple of str
        In which manners it dies: reset, fin, close, silence, half frame, half request, unread 101.
    life : int
        Messages that it lives for, on average.
    since : bool
        Whether it says what it saw last when it comes back.
    talks : bool
        Whether it asks, or only watches.
    asks : int
        How often it asks one kernel, at most, before it goes to another.
    """

    name: str
    window: int = 0
    bite: int = 1 << 16
    pause: float = 0.0
    deaths: tuple[str, ...] = ()
    life: int = 0
    since: bool = False
    talks: bool = True
    asks: int = 25


DEATHS = ("reset", "fin", "close", "silence", "half frame", "half request", "unread 101")
PROFILES = (
    ClientProfile("fast"),
    ClientProfile("watching", talks=False),
    ClientProfile("slow", window=4096, bite=4096, pause=0.1),
    ClientProfile("coming back", deaths=DEATHS, life=800),
    ClientProfile(
        "coming back slowly", window=4096, bite=8192, pause=0.05, deaths=DEATHS, life=300
    ),
    ClientProfile("coming back with since", deaths=DEATHS, life=800, since=True),
)
