"""Translates for kernels with an older major version of the protocol, with jupyter_client.

Only messages of such kernels are parsed and written again; all other messages pass unchanged.
"""

from __future__ import annotations

import json
from typing import Any

from kbridge.errors import InvalidMessage, KernelMessageError
from kbridge.wire.message import Buffer, Channel, Message, json_object

__all__ = ["Adapter", "adapter_for", "kernel_protocol"]

# Errors of jupyter_client for a message whose content does not fit its type. It calls the method
# with the name of the type: `__call__` recurses, `__eq__` does not return a message.
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)

CURRENT = 5
"""The major version that clients use (jupyter_client.protocol_version_info)."""


def kernel_protocol(kernel_info_reply: Message) -> str:
    """Return the protocol version of a kernel_info_reply, or an empty string.

    Protocol 4 gives it as a list of numbers, protocol 5 as a string.

    Raises
    ------
    KernelMessageError
        If its content is not a JSON object.
    """
    try:
        version = json_object(kernel_info_reply.content, "content").get("protocol_version", "")
    except InvalidMessage as error:
        raise KernelMessageError(f"kernel_info_reply: {error.reason}") from None
    if isinstance(version, list):
        return ".".join(str(number) for number in version)
    return version if isinstance(version, str) else ""


def adapter_for(version: str) -> Adapter | None:
    """Return the adapter for a kernel of protocol `version`; None if none is needed."""
    major = version.partition(".")[0]
    # One digit is enough: the version is below 5. `int` raises for thousands of digits.
    if len(major) != 1 or not major.isdecimal() or int(major) >= CURRENT:
        return None
    return Adapter(int(major))


class Adapter:
    """Translates between the current protocol and an older one.

    Parameters
    ----------
    major : int
        The major version of the kernel.
    """

    def __init__(self, major: int) -> None:
        self.major = major

    def to_kernel(self, msg: Message) -> Message:
        """Return a client's message in the protocol of the kernel.

        Raises
        ------
        InvalidMessage
            If it cannot be translated.
        """
        return self._adapt(msg, self.major, version=None)

    def from_kernel(self, msg: Message) -> Message:
        """Return a kernel's message in the protocol of clients.

        Raises
        ------
        KernelMessageError
            If it cannot be translated.
        """
        try:
            return self._adapt(msg, CURRENT, version=f"{self.major}.0")
        except InvalidMessage as error:
            raise KernelMessageError(error.reason) from None

    def _adapt(self, msg: Message, to: int, version: str | None) -> Message:
        from jupyter_client.adapter import adapt  # imported only for old kernels

        header = json_object(msg.header, "header")
        header["version"] = version or header.get("version", f"{CURRENT}.0")
        whole = {
            "header": header,
            "parent_header": json_object(msg.parent_header, "parent_header"),
            "metadata": json_object(msg.metadata, "metadata"),
            "content": json_object(msg.content, "content"),
            "msg_type": header.get("msg_type", ""),
            "msg_id": header.get("msg_id", ""),
        }
        try:
            adapted = adapt(whole, to)
            adapted["header"]["msg_type"] = adapted.get("msg_type", adapted["header"]["msg_type"])
            return _pack(msg.channel, adapted, msg.buffers)
        except _FAULTS as error:
            what = ascii(msg.msg_type)[:40]
            fault = f"{type(error).__name__} {error}"[:40]
            raise InvalidMessage(f"{what} cannot be put in protocol {to}: {fault}") from None


def _pack(channel: Channel, whole: dict[str, Any], buffers: tuple[Buffer, ...]) -> Message:
    header, parent_header, metadata, content = (
        json.dumps(whole[part], default=str).encode()
        for part in ("header", "parent_header", "metadata", "content")
    )
    return Message(channel, header, parent_header, metadata, content, buffers)
