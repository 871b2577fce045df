"""Control packets between a bridge and the holder, over a unix socket with `SOCK_SEQPACKET`.

A packet has a letter, then fields that are separated by NUL:

======  ==================  ========================  ============================================
packet  fields              descriptors               meaning
======  ==================  ========================  ============================================
`M`     memory              memory file               use this memory for buffers
`A`     key, memory,        connection                hold a connection, with its buffer
        offset, info
`B`     key, memory,        -                         the bridge receives into another buffer
        offset
`F`     key, position       -                         forget stored bytes before a position
`D`     key                 -                         drop a connection
`T`     -                   -                         send all connections, as `E` and then `.`
`E`     key, info, flags,   connection, and one for   a connection with its stored bytes
        extents             each extent
`X`     key, extents        one for each extent       further stored bytes of that connection
`.`     -                   -                         all connections have been sent
`U`     -                   -                         the bridge of the holder lives: ask no more
======  ==================  ========================  ============================================
"""

from __future__ import annotations

import _socket as socket  # `socket` itself takes another megabyte
import os
import sys

__all__ = ["LIMIT", "MOST_FDS", "fields_of", "packet", "receive", "send"]

LIMIT = 128 * 1024
"""Bytes of the largest control packet."""

MOST_FDS = 64
"""Descriptors of one control packet; more are sent as several packets."""

_ROOM = 253  # the most that Linux accepts: earlier holders did not divide their packets


def packet(letter: str, *fields: str) -> bytes:
    """Return a control packet."""
    return "\0".join((letter, *fields)).encode()


def fields_of(data: bytes) -> list[str]:
    """Return the letter and the fields of a control packet."""
    return data.decode().split("\0")


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send a packet with descriptors."""
    numbers = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
    sock.sendmsg([data], ancillary)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a packet with descriptors; the packet is empty at the end of the connection.

    Descriptors are missing if this process may open no more of them.
    """
    data, ancillary, _, _ = sock.recvmsg(LIMIT, socket.CMSG_SPACE(4 * _ROOM))
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) // 4 * 4
            fds += memoryview(content[:whole]).cast("i").tolist()
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, fds
