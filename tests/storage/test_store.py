"""The store of journals: begin, end, limits, failures, locks, orphans."""

from __future__ import annotations

from pathlib import Path

from tests.storage.harness import Source, open_store, read


def say(source: Source, count: int) -> None:
    for i in range(count):
        big = i % 97 == 0
        source.append(
            bytes([i % 256]) * (300_000 if big else i % 400),
            state=i % 5 == 0,
            client=i % 7 == 0 and 9,
            key=i + 1,
        )


async def test_a_journal_is_read_from_disk_and_after_a_restart(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history = store.history("k")
    assert history.recovered is None
    assert history.oldest is None
    source = Source()
    history.attach(source)
    say(source, 1000)
    history.changed()
    history.record("session/1", {"number": 3})
    history.record("request/1", [1])
    history.record("request/1", None)
    await history.flush()
    assert (history.end, history.offset) == (1000, source.end)
    assert source.written == 1000
    assert source.durable is True
    for max_bytes in (1000, 512 * 1024):
        reading = await read(history, max_bytes=max_bytes)
        reading.check(source)
        assert sorted(reading.frames) == [*range(1000)]
    assert await history.find(500, lambda frame: True) == (500, 500, source.offset(500))
    await store.aclose(keep=True)

    store = await open_store(tmp_path, keep=["k"])
    history = store.history("k")
    assert history.recovered == (1000, source.end, {"session/1": {"number": 3}})
    reading = await read(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(1000)]
    assert await history.find(500, lambda frame: True) == (500, 500, source.offset(500))
    await store.aclose(keep=False)
    assert [*(tmp_path / "journals").iterdir()] == []
