"""Counts of the bytes that are on their way between two sockets."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

from kbridge.link.holder.header import unread

__all__ = ["all_read"]


def all_read(sender: socket.socket, receiver: socket.socket) -> bool:
    """Return True if everything that was sent has arrived, and was read."""
    unacknowledged = fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, bytes(4))
    return not int.from_bytes(unacknowledged, sys.byteorder) and not unread(receiver)
