from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.seam import Seam

FRAMES = st.lists(st.sampled_from([b"a", b"b", b"c"]))


@given(FRAMES, FRAMES, FRAMES)
def test_frames_that_come_again_are_written_once(
    before: list[bytes], written: list[bytes], lost: list[bytes]
) -> None:
    seam = Seam(written)
    new = [frame for frame in [*written, *lost] if not seam.is_written(frame)]
    assert sorted([*before, *written, *new]) == sorted([*before, *written, *lost])


def test_the_order_of_channels_does_not_matter() -> None:
    seam = Seam([b"iopub 1", b"shell 1", b"iopub 2"])
    again = [b"iopub 1", b"iopub 2", b"iopub 3", b"shell 1", b"shell 2"]
    assert [frame for frame in again if not seam.is_written(frame)] == [b"iopub 3", b"shell 2"]


def test_equal_frames_are_counted() -> None:
    seam = Seam([b"same", b"same"])
    assert [seam.is_written(b"same") for _ in range(3)] == [True, True, False]
