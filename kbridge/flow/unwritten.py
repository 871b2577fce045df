"""Batches of the frames of a journal that are not on disk yet.

Copies of arrays and lists cost little per frame; only the frames with state, or for one client, are
looked at one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from kbridge.flow.batch import Batch
from kbridge.flow.ring import RetainedFrames, Ring

__all__ = ["members", "private", "retained_batch", "ring_batch"]


def ring_batch(
    ring: Ring, written: int, audience: Mapping[int, int], state: AbstractSet[int], max_bytes: int
) -> Batch | None:
    """Return the frames of a ring from number `written` on; None if there are none.

    The batch ends with the frame that reaches `max_bytes`. `audience` has the clients of frames for
    one client, and `state` the frames with state, both by sequence number.
    """
    start, stop = max(written, ring.first), ring.next
    if start >= stop:
        return None
    begin = ring.offset(start)
    if ring.appended - begin > max_bytes:
        stop = ring.reach(begin + max_bytes, start + 1, stop)
    seqs = range(start, stop)
    offsets, keys = ring.tables(start, stop)
    with_state = [seq - start for seq in members(state, seqs)] if state else []
    return Batch(
        *(ring.frames(start, stop), start, None, offsets, keys),
        *(private(audience, seqs), with_state),
    )


def retained_batch(
    retained: RetainedFrames, written: int, audience: Mapping[int, int], max_bytes: int
) -> Batch:
    """Return the retained frames from number `written` on, of which there must be one."""
    seqs, offsets, keys = array("Q"), array("Q"), array("q")
    frames: list[bytes] = []
    for item, key in retained.with_keys(written):
        seqs.append(item.seq)
        offsets.append(item.offset)
        keys.append(key)
        frames.append(item.frame)
        max_bytes -= len(item.frame)
        if max_bytes <= 0:
            break
    clients = {i: audience[seq] for i, seq in enumerate(seqs) if seq in audience}
    return Batch(frames, seqs[0], seqs, offsets, keys, clients, list(range(len(frames))))


def private(audience: Mapping[int, int], seqs: range) -> dict[int, int]:
    """Return the clients of the frames `seqs` that are for one client, by index into `seqs`."""
    start = seqs.start
    if len(audience) < len(seqs):
        return {seq - start: audience[seq] for seq in members(audience.keys(), seqs)}
    return {seq - start: audience[seq] for seq in seqs if seq in audience}


def members(table: AbstractSet[int], numbers: range) -> list[int]:
    """Return the members of `table` that are in `numbers`, in rising order."""
    if len(table) < len(numbers):
        return sorted(seq for seq in table if seq in numbers)
    return [seq for seq in numbers if seq in table]
