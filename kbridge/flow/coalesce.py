"""A stretch of the journal in fewer frames, for a reader that lags.

Laws of this module:

- what a frontend shows in the end is what it would show without, and no stream text is lost but
  what a `clear_output` in the same stretch wipes;
- only the types that `journal.LOSABLE` names are touched. All others stay, byte for byte, and
  nothing but the joining of neighbours is done between two of them: the messages from one to the
  next are a *run*, in which all output of one parent goes to one place (`_Later` says why);
- order is kept, and the last message's header is in what goes out last: a client that names the
  last `msg_id` it saw resumes after all of it;
- what is not understood whole (JSON that does not parse, another shape, buffers, no parent, a size
  out of bounds) ends a run and stays as it is; nothing is raised;
- `coalesce(coalesce(x)) == coalesce(x)`.

This is the hot path of a lagging reader, so bytes are compared where that proves as much as
parsing would; a spelling that is not expected is parsed.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from kbridge.errors import FrameError
from kbridge.flow.journal import LOSABLE
from kbridge.wire import frames as websocket
from kbridge.wire import v1
from kbridge.wire.message import Channel

__all__ = ["LARGEST_JOINED", "coalesce"]

LARGEST_JOINED: Final = 1 << 19
"""Bytes of text in a joined message: there are clients that refuse a message of 1 MiB."""

_LARGEST_EXAMINED = 1 << 20  # bytes; to parse larger ones would hold up everybody else

_STREAM, _DISPLAY, _UPDATE, _CLEAR = "stream", "display_data", "update_display_data", "clear_output"
_KINDS = (_STREAM, _DISPLAY, _UPDATE, _CLEAR)  # no set: what is looked up may not be hashable
assert frozenset(_KINDS) == LOSABLE
_OPAQUE = ""
_IOPUB = Channel.IOPUB.encode()


class _Context(NamedTuple):
    """Parent header and metadata that are JSON objects; equal ones of a stretch are one object."""

    parent_id: str


# A message that may be touched: its type and context; of a stream the name and the text, as they
# stand between the quotes, of others the content. A bare tuple: one is made for each frame.
_Entry: TypeAlias = tuple[str, _Context, bytes, bytes]


def coalesce(frames: Sequence[bytes]) -> list[bytes]:
    """Say the same in fewer frames.

    1. Neighbouring `stream` messages of one name, with the same bytes for a parent header and for
       metadata, become one message with the texts joined, up to `LARGEST_JOINED`. Its header is
       the last one's.
    2. An `update_display_data` is left out if a later one has the same parent and display id.
    3. What a later `clear_output` of the same parent wipes is left out, earlier `clear_output`
       included; that one itself stays, since it wipes what was shown before the stretch, too. With
       `wait` it wipes only if the next output of the parent follows. A display with an id is left
       out only if the same parent shows or updates that id later.

    Rules 2 and 3 hold within a run: they do not reach across a message of any other type. Rule 1
    joins what are neighbours once they have been applied.

    Parameters
    ----------
    frames : sequence of bytes
        Whole websocket frames, as `kbridge.wire.v1.encode_frame` writes them: consecutive, in
        order, and all for one reader.

    Returns
    -------
    list of bytes
        What to send instead. What was not joined are the very objects that came.
    """
    entries = _Reader().read(frames)
    if gone := _left_out(entries):
        frames = [frame for i, frame in enumerate(frames) if i not in gone]
        entries = [entry for i, entry in enumerate(entries) if i not in gone]
    return _join_streams(frames, entries)


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
    """The texts of as many streams from `start` on as one message can hold."""
    _, context, name, before = first
    texts = [before]
    size = len(before)
    for index in range(start + 1, len(entries)):
        entry = entries[index]
        if entry is None or entry[1] is not context or entry[2] != name or entry[0] != _STREAM:
            break
        text = entry[3]
        size += len(text)
        if size > LARGEST_JOINED or (text[:1] == b"\\" and _would_pair(before, text)):
            break
        texts.append(text)
        before = text or before
    return texts


def _would_pair(before: bytes, after: bytes) -> bool:
    """Whether two lone surrogates, each at an end, would become one character."""
    return bool(_LOW_SURROGATE.match(after) and _HIGH_SURROGATE.match(before[-6:]))


def _joined(last: bytes, name: bytes, texts: list[bytes]) -> bytes:
    """A stream message with the header of the frame `last`."""
    content = b'{"name": "%b", "text": "%b"}' % (name, b"".join(texts))
    message = v1.split(websocket.payload(last))
    return v1.encode_frame(message._replace(content=content))


# -- leaving out --------------------------------------------------------------------------------


def _left_out(entries: Sequence[_Entry | None]) -> set[int]:
    """Indices of what later messages of the same run supersede or wipe."""
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
                verdict = later.makes_needless(run[index])
                if verdict is None:
                    later = _Later()
                elif verdict:
                    gone.add(start + index)
        start = end + 1
    return gone


class _Later:
    """What a run holds from some place on, as one learns it going backwards.

    Why a run ends at any other type: a comm message may put an Output widget between a parent and
    its cell, or take it away, so that a `clear_output` on each side wipes different places. After
    `status: idle` many clients no longer listen to that parent (nbclient, jupyter_client), after
    `restarting` none does (JupyterLab), and so what comes then makes up for nothing. At an input
    request the user types into the output; a reply may put a page there; of unknown types nothing
    is known. All are rare beside the output that makes a reader lag.
    """

    __slots__ = ("added", "shown", "updated", "waiting", "wiped")

    def __init__(self) -> None:
        # Parents that add output. That, not an update, is what a `clear_output` with `wait` waits
        # for (`add` of JupyterLab's OutputAreaModel, `output` of nbclient).
        self.added: set[str] = set()
        self.wiped: set[str] = set()  # parents whose output so far is wiped
        self.waiting: set[str] = set()  # parents that are to be wiped after the run
        self.shown: set[tuple[str, str]] = set()  # parent and id of displays and updates
        self.updated: set[tuple[str, str]] = set()  # of updates alone

    def makes_needless(self, entry: _Entry) -> bool | None:
        """Whether the message before may be left out; None where it cannot be understood."""
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
        """A display shows its data wherever its id already is, in cells that are not wiped, too."""
        key = (parent, display_id)
        needless = parent in self.wiped and (not display_id or key in self.shown)
        self.added.add(parent)
        self.shown.add(key)
        return needless

    def _update(self, parent: str, display_id: str) -> bool:
        """An update replaces the whole of what the display's id shows, so the last one is enough.

        That holds with displays of that id in between: they show their own data until then. It
        must be of the same parent, since there are clients that listen to one parent alone. To
        wipe the parent's output is no substitute: the id may be shown in other cells.
        """
        key = (parent, display_id)
        needless = key in self.updated
        self.updated.add(key)
        self.shown.add(key)
        return needless


def _display_id(content: dict[str, Any]) -> str | None:
    """The id of a display, empty where it has none; None if this is no display's content."""
    transient = content.get("transient") or {}
    objects = content.get("data"), content.get("metadata"), transient
    if not all(isinstance(value, dict) for value in objects):
        return None
    display_id = transient.get("display_id") or ""
    return display_id if isinstance(display_id, str) else None


# -- reading ------------------------------------------------------------------------------------

# The usual frame of 126 to 65,535 bytes on iopub: 0x82 0x7E, the size in two bytes (big-endian),
# 6, 56, 61, four offsets (RFC 6455 section 5.2; wire/v1.py).
_unpack = struct.Struct("<2sBB24s4Q").unpack_from
_MARK = b"\x82\x7e"
_USUAL = struct.pack("<3Q", 6, 56, 61)
_AT = 4 + 56

_ONE_DIGIT = bytes.maketrans(b"123456789", b"000000000")

_PLAIN = rb"[ -!#-\[\]-\xff]*"  # what needs no escape: all but quotes, backslashes and controls
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_TEXT = re.compile(
    rb'\{"name": ?"([a-z]+)", ?"text": ?"(%b(?:%b%b)*)"\}' % (_PLAIN, _ESCAPE, _PLAIN)
)


class _Reader:
    """Takes frames apart, and remembers what is proven of the parts that come again."""

    __slots__ = ("_contexts", "_kinds", "_last_stream")

    def __init__(self) -> None:
        self._kinds: dict[bytes, str] = {}
        self._contexts: dict[tuple[bytes, int], _Context | None] = {}
        self._last_stream = (b"", b"", 0, _Context(""))

    def read(self, frames: Sequence[bytes]) -> list[_Entry | None]:
        """What is known of each frame; None if it must stay as it is and ends a run."""
        entries: list[_Entry | None] = []
        the_shape, the_about, the_split, context = self._last_stream
        for frame in frames:
            size = len(frame)
            if not _AT < size <= _LARGEST_EXAMINED:
                entries.append(None)
                continue
            mark, high, low, usual, at2, at3, at4, end = _unpack(frame)
            if not (
                mark == _MARK
                and usual == _USUAL
                and high << 8 | low == end == size - 4
                and 61 <= at2 <= at3 <= at4 <= end
            ):
                entries.append(self._read_unusual(frame))
                continue
            at2, at4 = at2 + 4, at4 + 4
            label, about, split = frame[_AT:at2], frame[at2:at4], at3 + 4 - at2
            shape = label.translate(_ONE_DIGIT)
            if shape == the_shape and about == the_about and split == the_split:
                match = _TEXT.fullmatch(frame, at4)
                if match is not None:
                    name, text = match.groups()
                    if text.isascii():
                        entries.append((_STREAM, context, name, text))
                        continue
            entries.append(self._read_parts(label, shape, about, split, frame[at4:]))
            the_shape, the_about, the_split, context = self._last_stream
        return entries

    def _read_unusual(self, frame: bytes) -> _Entry | None:
        payload = websocket.payload(frame)
        if not frame.startswith(websocket.header(len(payload), websocket.BINARY)):
            return None
        try:
            channel, header, parent, metadata, content, buffers = v1.split(payload)
        except FrameError:
            return None
        if buffers:
            return None
        label = channel.encode() + header
        shape = label.translate(_ONE_DIGIT)
        return self._read_parts(label, shape, parent + metadata, len(parent), content)

    def _read_parts(
        self, label: bytes, shape: bytes, about: bytes, split: int, content: bytes
    ) -> _Entry | None:
        """Of channel and header, parent header and metadata (split where), and content."""
        kind = self._kinds.get(shape)
        if kind is None:
            kind = self._find_kind(label, shape)
        if kind == _OPAQUE:
            return None
        key = (about, split)
        if key not in self._contexts:
            self._contexts[key] = _context(about[:split], about[split:])
        context = self._contexts[key]
        if context is None:
            return None
        if kind == _STREAM:
            if shape in self._kinds:
                self._last_stream = (shape, about, split, context)
            return _stream(context, content)
        return (kind, context, b"", content)

    def _find_kind(self, label: bytes, shape: bytes) -> str:
        """The type, if it may be touched; remembered where all labels of that shape have it.

        The headers of one kernel differ in digits alone (a counter, the time). In a flat object of
        strings without escapes, a digit for a digit changes neither its validity nor its type.
        """
        header = _object(label.removeprefix(_IOPUB)) if label.startswith(_IOPUB) else None
        if not header:
            return _OPAQUE
        found = header.get("msg_type")
        kind: str = found if found in _KINDS else _OPAQUE
        if b"\\" not in label and all(isinstance(value, str) for value in header.values()):
            self._kinds[shape] = kind
        return kind


def _context(parent: bytes, metadata: bytes) -> _Context | None:
    header = _object(parent)
    if header is None or _object(metadata) is None:
        return None
    parent_id = header.get("msg_id")
    return _Context(parent_id if isinstance(parent_id, str) else "")


def _stream(context: _Context, content: bytes) -> _Entry | None:
    if len(content) > LARGEST_JOINED:
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
    raise ValueError(f"{constant} is no JSON")  # though Python writes and reads it


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def _object(raw: bytes) -> dict[str, Any] | None:
    """A JSON object, read as strictly as browsers do; None if it is none."""
    try:
        value = _decode(raw.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
