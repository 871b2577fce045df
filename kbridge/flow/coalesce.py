"""Reduce a stretch of the journal to fewer frames, for a reader that lags.

Invariants:

- a frontend shows the same in the end as with all frames. Stream text is removed only if a
  `clear_output` in the same stretch clears it;
- only frames of the types in `journal.LOSABLE` are changed. All other frames stay, byte for byte.
  The frames between two of them are a *run*, in which all output of a parent goes to the same cell
  (see `_Later`). Frames are only left out because of later frames of the same run;
- the order is kept, and the last frame of the result has the header of the last message: a client
  that names the last `msg_id` it received resumes after all of them;
- a frame that cannot be parsed completely (invalid JSON, unknown fields, buffers, no parent, a size
  out of bounds) ends a run and stays unchanged; no exception is raised;
- `coalesce(coalesce(x)) == coalesce(x)`.

This is the hot path of a lagging reader. Bytes are therefore compared where a comparison is
sufficient; only unexpected forms are parsed.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from kbridge.errors import FrameError
from kbridge.flow.journal import LOSABLE
from kbridge.wire import frames as websocket
from kbridge.wire import v1
from kbridge.wire.headers import SHAPE, type_place
from kbridge.wire.message import Channel

__all__ = ["MAX_JOINED", "coalesce", "coalesce_counted"]

MAX_JOINED: Final = 1 << 19
"""Maximum number of bytes of text in a joined message; some clients refuse a message of 1 MiB."""

_MAX_EXAMINED = 1 << 20  # bytes; parsing larger frames would block other clients

_STREAM, _DISPLAY, _UPDATE, _CLEAR = "stream", "display_data", "update_display_data", "clear_output"
_KINDS = {kind.encode(): kind for kind in (_STREAM, _DISPLAY, _UPDATE, _CLEAR)}
assert frozenset(_KINDS.values()) == LOSABLE
_OPAQUE = ""
_IOPUB = Channel.IOPUB.encode()


class _Context(NamedTuple):
    """Valid parent header and metadata; frames with equal ones share one object."""

    parent_id: str


# A frame that may be changed: type, context, and for a stream the name and the text without quotes,
# for other types an empty name and the content. A plain tuple, because each frame needs one.
_Entry: TypeAlias = tuple[str, _Context, bytes, bytes]


def coalesce(frames: Sequence[bytes]) -> list[bytes]:
    """Return frames with the same effect, but fewer of them.

    1. Consecutive `stream` messages with the same name, parent header and metadata (compared as
       bytes) become one message with the joined text, up to `MAX_JOINED`. It has the header of the
       last one.
    2. An `update_display_data` is left out if a later one has the same parent and display id.
    3. Output is left out if a later `clear_output` of the same parent clears it; so are earlier
       `clear_output`. The last `clear_output` stays, because it also clears output from before the
       stretch. With `wait` it clears only if more output of the parent follows. A display with an
       id is left out only if the same parent shows or updates that id later.

    Rules 2 and 3 apply within a run; a message of any other type ends it. Rule 1 is applied after
    them.

    Parameters
    ----------
    frames : sequence of bytes
        Complete websocket frames that `kbridge.wire.v1.encode_frame` wrote; consecutive, in order,
        and all for one reader.

    Returns
    -------
    list of bytes
        The frames to send instead. Frames that were not joined are the same objects.
    """
    return coalesce_counted(frames)[0]


def coalesce_counted(frames: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Return what `coalesce` returns, and the number of frames that rules 2 and 3 left out."""
    if len(frames) < 2:  # such as a large frame, which is read alone
        return list(frames), 0
    reader = _Reader()
    entries = reader.read(frames)
    left_out = 0
    if reader.replaces and (gone := _left_out(entries)):
        left_out = len(gone)
        frames = [frame for i, frame in enumerate(frames) if i not in gone]
        entries = [entry for i, entry in enumerate(entries) if i not in gone]
    return _join_streams(frames, entries), left_out


# -- joining ------------------------------------------------------------------------------------

_HIGH_SURROGATE = re.compile(rb"\\u[dD][89aAbB][0-9a-fA-F]{2}")
_LOW_SURROGATE = re.compile(rb"\\u[dD][c-fC-F]")


def _join_streams(frames: Sequence[bytes], entries: Sequence[_Entry | None]) -> list[bytes]:
    out: list[bytes] = []
    start, stop = 0, len(entries)
    while start < stop:
        first = entries[start]
        if first is None or first[0] != _STREAM:
            out.append(frames[start])
            start += 1
            continue
        texts = _joinable(entries, start, first)
        start += len(texts)
        last = frames[start - 1]
        out.append(last if len(texts) == 1 else _joined(last, first[2], texts))
    return out


def _joinable(entries: Sequence[_Entry | None], start: int, first: _Entry) -> list[bytes]:
    """Return the texts of the streams from `start` on that fit into one message."""
    _, context, name, before = first
    texts = [before]
    size = len(before)
    for entry in islice(entries, start + 1, None):
        if entry is None:
            break
        kind, about, of, text = entry
        if about is not context or of != name or kind != _STREAM:
            break
        size += len(text)
        if size > MAX_JOINED or (text[:1] == b"\\" and _would_pair(before, text)):
            break
        texts.append(text)
        before = text or before
    return texts


def _would_pair(before: bytes, after: bytes) -> bool:
    """Return True if lone surrogates at the two ends would be joined to one character."""
    return bool(_LOW_SURROGATE.match(after) and _HIGH_SURROGATE.match(before[-6:]))


def _joined(last: bytes, name: bytes, texts: list[bytes]) -> bytes:
    """Return the frame of a stream message with the header of the frame `last`."""
    content = b'{"name": "%b", "text": "%b"}' % (name, b"".join(texts))
    message = v1.split(websocket.payload(last))
    return v1.encode_frame(message._replace(content=content))


# -- leaving out --------------------------------------------------------------------------------


def _left_out(entries: Sequence[_Entry | None]) -> set[int]:
    """Return the indices of frames that later frames of the same run replace or clear."""
    gone: set[int] = set()
    start = 0
    for end, ending in enumerate((*entries, None)):
        if ending is not None:
            continue
        run = [entry for entry in entries[start:end] if entry is not None]
        kinds = [entry[0] for entry in run]
        if _CLEAR in kinds or kinds.count(_UPDATE) > 1:
            later = _Later()
            for index in reversed(range(len(run))):
                verdict = later.makes_redundant(run[index])
                if verdict is None:
                    later = _Later()
                elif verdict:
                    gone.add(start + index)
        start = end + 1
    return gone


class _Later:
    """The effect of the rest of a run, collected while the run is read backwards.

    A run ends at any other message type for these reasons. A comm message may add or remove an
    Output widget between a parent and its cell, so that a `clear_output` before and after it clears
    different areas. After `status: idle`, many clients ignore messages of that parent (nbclient,
    jupyter_client), and after `restarting` JupyterLab ignores all of them, so later frames cannot
    replace earlier ones. At an input request the user types into the output; a reply may show a
    page there; the effect of unknown types is unknown. All these types are rare compared with the
    output that makes a reader lag.
    """

    __slots__ = ("added", "shown", "updated", "waiting", "wiped")

    def __init__(self) -> None:
        # Parents that add output. A `clear_output` with `wait` waits for added output, not for an
        # update (`add` of JupyterLab's OutputAreaModel, `output` of nbclient).
        self.added: set[str] = set()
        self.wiped: set[str] = set()  # parents whose earlier output is cleared
        self.waiting: set[str] = set()  # parents with a pending `clear_output` with `wait`
        self.shown: set[tuple[str, str]] = set()  # parent and id of displays and updates
        self.updated: set[tuple[str, str]] = set()  # parent and id of updates

    def makes_redundant(self, entry: _Entry) -> bool | None:
        """Return True if the frame can be left out; None if its content is invalid."""
        kind, context, _, raw = entry
        parent = context.parent_id
        if kind == _STREAM:
            self.added.add(parent)
            return parent in self.wiped
        content = _object(raw)
        if content is None or not parent:
            return None
        if kind == _CLEAR:
            wait = content.get("wait")
            return self._clear(parent, wait=wait) if isinstance(wait, bool) else None
        display_id = _display_id(content)
        if kind == _DISPLAY:
            return None if display_id is None else self._display(parent, display_id)
        return self._update(parent, display_id) if display_id else None

    def _clear(self, parent: str, *, wait: bool) -> bool:
        if parent in self.wiped:
            return True
        found = self.wiped if not wait or parent in self.added else self.waiting
        needless = parent in found
        found.add(parent)
        return needless

    def _display(self, parent: str, display_id: str) -> bool:
        """Process a display, which also updates its id in other cells, which may not be cleared."""
        key = (parent, display_id)
        needless = parent in self.wiped and (not display_id or key in self.shown)
        self.added.add(parent)
        self.shown.add(key)
        return needless

    def _update(self, parent: str, display_id: str) -> bool:
        """Process an update. It replaces all data of its display id, so only the last one counts.

        This is also true with displays of that id between the updates: they show their own data
        until the next update. The last update must have the same parent, because some clients
        listen only to one parent. A later `clear_output` does not make an update redundant, because
        the id may be shown in other cells.
        """
        key = (parent, display_id)
        needless = key in self.updated
        self.updated.add(key)
        self.shown.add(key)
        return needless


def _display_id(content: dict[str, Any]) -> str | None:
    """Return the id of a display, empty if it has none; None if the content is invalid."""
    transient = content.get("transient") or {}
    objects = content.get("data"), content.get("metadata"), transient
    if not all(isinstance(value, dict) for value in objects):
        return None
    display_id = transient.get("display_id") or ""
    return display_id if isinstance(display_id, str) else None


# -- reading ------------------------------------------------------------------------------------

# The usual frame of 126 to 65,535 bytes on iopub: 0x82 0x7E, the size in two bytes (big-endian),
# the number of offsets (6), the offsets 56 and 61, four more offsets (RFC 6455 section 5.2;
# wire/v1.py), and the channel.
_unpack = struct.Struct("<2sBB24s4Q5s").unpack_from
_MARK = b"\x82\x7e"
_USUAL = struct.pack("<3Q", 6, 56, 61)
_AT = 4 + 61

_PLAIN = rb"[ -!#-\[\]-\xff]*"  # all characters except quotes, backslashes and control characters
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_TEXT = re.compile(
    rb'\{"name": ?"([a-z]+)", ?"text": ?"(%b(?:%b%b)*)"\}' % (_PLAIN, _ESCAPE, _PLAIN)
)


class _Reader:
    """Parses frames, and caches the results for parts that occur again.

    Attributes
    ----------
    replaces : bool
        True if some frame may replace or clear earlier ones.
    """

    __slots__ = ("_contexts", "_last_stream", "replaces")

    def __init__(self) -> None:
        self.replaces = False
        self._contexts: dict[tuple[bytes, int], _Context | None] = {}
        # Of the last stream: the shape of its header, where that has the type, key and type as they
        # are written, parent header and metadata, the size of the parent header, and the context.
        self._last_stream = (b"", 0, 0, b"", b"", 0, _Context(""))

    def read(self, frames: Sequence[bytes]) -> list[_Entry | None]:
        """Return an entry for each frame; None for a frame that stays and ends a run."""
        entries: list[_Entry | None] = []
        the_shape, at, stop, the_type, the_about, the_split, context = self._last_stream
        for frame in frames:
            size = len(frame)
            if not _AT < size <= _MAX_EXAMINED:
                entries.append(None)
                continue
            mark, high, low, usual, at2, at3, at4, end, channel = _unpack(frame)
            if not (
                mark == _MARK
                and usual == _USUAL
                and channel == _IOPUB
                and high << 8 | low == end == size - 4
                and 61 <= at2 <= at3 <= at4 <= end
            ):
                entries.append(self._read_unusual(frame))
                continue
            at2, at4 = at2 + 4, at4 + 4
            header, about, split = frame[_AT:at2], frame[at2:at4], at3 + 4 - at2
            if (
                about == the_about
                and split == the_split
                and header.translate(SHAPE) == the_shape
                and header[at:stop] == the_type
            ):
                match = _TEXT.fullmatch(frame, at4)
                if match is not None:
                    name, text = match.groups()
                    if text.isascii():
                        entries.append((_STREAM, context, name, text))
                        continue
            entries.append(self._read_parts(header, about, split, frame[at4:]))
            the_shape, at, stop, the_type, the_about, the_split, context = self._last_stream
        return entries

    def _read_unusual(self, frame: bytes) -> _Entry | None:
        if v1.has_buffers(frame):  # before a copy is made
            return None
        payload = websocket.payload(frame)
        if not frame.startswith(websocket.header(len(payload), websocket.BINARY)):
            return None
        try:
            channel, header, parent, metadata, content, buffers = v1.split(payload)
        except FrameError:
            return None
        if buffers or channel is not Channel.IOPUB:
            return None
        return self._read_parts(header, parent + metadata, len(parent), content)

    def _read_parts(self, header: bytes, about: bytes, split: int, content: bytes) -> _Entry | None:
        """Return the entry of a frame on iopub.

        `about` is parent header and metadata, which begins at `split`.
        """
        shape = header.translate(SHAPE)
        place = type_place(header, shape)
        if place is not None:
            at, start, stop = place
            kind = _KINDS.get(header[start:stop], _OPAQUE)
        else:
            found = (_object(header) or {}).get("msg_type")
            kind = found if isinstance(found, str) and found in LOSABLE else _OPAQUE
        if kind == _OPAQUE:
            return None
        key = (about, split)
        if key not in self._contexts:
            self._contexts[key] = _context(about[:split], about[split:])
        context = self._contexts[key]
        if context is None:
            return None
        if kind == _STREAM:
            if place is not None:
                self._last_stream = (shape, at, stop, header[at:stop], about, split, context)
            return _stream(context, content)
        self.replaces = self.replaces or kind != _DISPLAY
        return (kind, context, b"", content)


def _context(parent: bytes, metadata: bytes) -> _Context | None:
    header = _object(parent)
    if header is None or _object(metadata) is None:
        return None
    parent_id = header.get("msg_id")
    return _Context(parent_id if isinstance(parent_id, str) else "")


def _stream(context: _Context, content: bytes) -> _Entry | None:
    if len(content) > MAX_JOINED:
        return None
    match = _TEXT.fullmatch(content)
    if match is not None:
        name, text = match.groups()
    else:
        spelled = _object(content) or {}
        if spelled.keys() != {"name", "text"}:
            return None
        if not all(isinstance(value, str) for value in spelled.values()):
            return None
        name, text = (json.dumps(spelled[key])[1:-1].encode() for key in ("name", "text"))
    try:
        text.decode()
    except UnicodeDecodeError:
        return None
    return (_STREAM, context, name, text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")  # Python writes and reads it


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def _object(raw: bytes) -> dict[str, Any] | None:
    """Return a JSON object, parsed as strictly as in browsers; None if it is not one."""
    try:
        value = _decode(raw.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
