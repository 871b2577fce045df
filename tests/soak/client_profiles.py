"""The kinds of cooperative clients."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROFILES", "ClientProfile"]


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """A kind of client.

    Attributes
    ----------
    name : str
        The name in the table.
    window, bite : int
        Receive buffer (0: default of the system), and bytes per read.
    pause : float
        Maximum number of seconds before a read.
    deaths : tuple of str
        The ways in which it disconnects: reset, fin, close, silence, half frame, half request,
        unread 101.
    life : int
        Average number of messages per connection.
    since : bool
        True to name the last received message when it reconnects.
    talks : bool
        True if it sends requests; False if it only reads.
    asks : int
        Maximum number of requests to one kernel before it uses another one.
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
