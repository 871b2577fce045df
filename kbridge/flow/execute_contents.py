"""Fields of execute requests, their replies and output, without parsing a large content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from kbridge.wire.message import scan

__all__ = [
    "cell_of",
    "code_size",
    "count_of",
    "error_of",
    "has_display_id",
    "lines_in",
    "status_of",
]

_PARSED: Final = 64 << 10  # bytes; longer contents are not parsed, because that blocks the bridge
_TEXT: Final = 4 << 10  # bytes; a longer string of an error that is not parsed is left out
_COUNTED: Final = 16 << 10  # bytes of a message in which lines are counted
_SEARCHED: Final = 64 << 10
"""Bytes at the end of a display that are searched for its id: ipykernel writes it last."""

_OK: Final = (b'{"status": "ok",', b'{"status":"ok",')  # as ipykernel and others write it
_SPACES: Final = " \t\n\r"  # of JSON
_decode: Final = json.JSONDecoder().raw_decode
_CELL_CHARS: Final = 1024  # characters of a cell id; longer ones are ignored


def count_of(content: bytes, msg_type: str) -> int | None:
    """Return the execution count in a content.

    None if there is none, or for a large result or reply: the `execute_input` before it has the
    same count.
    """
    if msg_type == "execute_input":
        # All else is the code, a string: quotes have backslashes there.
        digits = content.partition(b'"execution_count":')[2][:20].strip().partition(b"}")[0]
        digits = digits.partition(b",")[0].strip()
        return int(digits) if digits.isdigit() else None
    count = _members(content).get("execution_count") if len(content) <= _PARSED else None
    return int(count) if isinstance(count, int) else None


def error_of(content: bytes) -> dict[str, Any]:
    """Return `ename`, `evalue` and `traceback` in the content of an `error`, as far as they exist.

    These are left out: values of other types than the protocol has, the traceback of a large error,
    and other strings of more than 4 KiB in it.
    """
    if len(content) <= _PARSED:
        whole = _members(content)
        found = {name: whole[name] for name in ("ename", "evalue") if _is_text(whole.get(name))}
        lines = whole.get("traceback")
        if isinstance(lines, list) and all(map(_is_text, lines)):
            found["traceback"] = lines
        return found
    return {
        "ename": _string(content, b'"ename":'),
        "evalue": _string(content, b'"evalue":'),
        "traceback": [],
    }


def has_display_id(data: bytes) -> bool:
    """Return True if a `display_data` has a display id, by which later messages may change it.

    Parameters
    ----------
    data : bytes
        The content, or the whole frame. Only the last 64 KiB are searched.
    """
    return data.find(b'"display_id"', max(0, len(data) - _SEARCHED)) >= 0


def status_of(content: bytes) -> str:
    """Return `status` of the content of an `execute_reply`; empty if there is none."""
    if content.startswith(_OK):
        return "ok"
    if len(content) > _PARSED:
        return _string(content, b'"status":')
    status = _members(content).get("status")
    return status if isinstance(status, str) else ""


def code_size(content: bytes) -> int:
    """Return the bytes of the code in the content of an `execute_request`.

    For a content of more than 64 KiB, return the size of the content, nearly all of which is code.
    """
    if len(content) > _PARSED:
        return len(content)
    code = _members(content).get("code")
    return len(code.encode("utf-8", "surrogatepass")) if isinstance(code, str) else 0


def cell_of(metadata: bytes) -> str | None:
    """Return `cellId` of the metadata of an `execute_request`; None if it has no sensible one.

    Metadata of more than 64 KiB is not searched.
    """
    if len(metadata) > _PARSED:
        return None
    cell = scan(metadata, "cellId") if b'"cellId"' in metadata else ""
    return cell if 0 < len(cell) <= _CELL_CHARS else None


def lines_in(contents: Sequence[bytes]) -> int:
    """Return the number of line ends in the contents of stream messages.

    If they have more than 16 KiB per message, those in the rest are estimated: counting takes 1 ms
    per MB.
    """
    nbytes = sum(map(len, contents))
    if nbytes <= _COUNTED * len(contents):
        return b"".join(contents).count(b"\\n")
    heads = b"".join([content[:_COUNTED] for content in contents])
    return heads.count(b"\\n") * nbytes // len(heads)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _string(content: bytes, key: bytes) -> str:
    """Return the string behind a key of a large object; empty if it is long or missing.

    Inside of strings, the quotes of the key would have backslashes.
    """
    at = content.find(key)
    if at < 0:
        return ""
    at += len(key)
    text = content[at : at + _TEXT].decode("utf-8", "ignore").lstrip()
    try:
        value, _ = _decode(text)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def _members(content: bytes) -> dict[str, Any]:
    try:
        # Unlike `raw_decode`, `json.loads` looks for white space around the object, in two calls.
        text = content.decode("utf-8", "surrogatepass").strip(_SPACES)
        whole, end = _decode(text)
    except (ValueError, RecursionError):
        return {}
    return whole if isinstance(whole, dict) and end == len(text) else {}
