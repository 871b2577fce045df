"""One sampler for all watchers; kernels in memory, a clock that stands still."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

import kbridge
from kbridge.page.sampler import INTERVAL
from tests.support.waiting import TIMEOUT, until


async def next_of(watcher: Any) -> Any:
    return json.loads(await asyncio.wait_for(watcher.next(), TIMEOUT))


async def test_a_sample_shows_the_server_and_its_kernels(site: Any) -> None:
    site.source.script.submit("one")
    site.source.script.begin("one")
    watcher = site.sampler.watch()
    sample = await next_of(watcher)
    assert sample["version"] == kbridge.__version__
    assert sample["now"] == site.clock.wall()
    assert sample["started"] == 5.0
    assert sample["rss"] > 0
    assert sample["journals"] == {}
    kernel, starting = sample["kernels"]
    assert (kernel["id"], kernel["name"], kernel["state"]) == ("a-kernel", "python3", "busy")
    assert kernel["executions"]["running"] == 1
    assert starting == {"id": "another", "name": "ir", "state": "starting"}
    watcher.leave()


async def test_a_kernel_that_waits_is_shown_with_its_reason(site: Any) -> None:
    site.source.why = {"another": "job 1 waits: Priority"}
    watcher = site.sampler.watch()
    _, starting = (await next_of(watcher))["kernels"]
    assert starting["reason"] == "job 1 waits: Priority"
    site.source.why = {"another": "job 1 waits: Resources"}
    site.go_on()
    changed = (await next_of(watcher))["kernels"]
    assert changed == [{"id": "another", "reason": "job 1 waits: Resources"}]
    site.source.why = {}
    site.go_on()
    _, starting = (await next_of(watcher))["kernels"]
    assert starting == {"id": "another", "name": "ir", "state": "starting"}
    watcher.leave()


async def test_rates_are_of_the_time_between_two_samples(site: Any) -> None:
    hub = site.source.hub
    hub.say(hub.notices.status("busy"))  # before anybody watches
    watcher = site.sampler.watch()
    assert (await next_of(watcher))["kernels"][0]["messages_per_second"] == 0
    for _ in range(6):
        hub.say(hub.notices.status("busy"))
    site.go_on(seconds=2.0)
    kernel = (await next_of(watcher))["kernels"][0]
    assert kernel["messages_per_second"] == 3.0
    assert kernel["bytes_per_second"] > 300
    site.go_on()
    kernel = (await next_of(watcher))["kernels"][0]
    assert kernel == {"id": "a-kernel", "messages_per_second": 0, "bytes_per_second": 0}
    site.go_on()
    assert (await next_of(watcher))["kernels"] == [], "nothing has changed"
    watcher.leave()


async def test_two_watchers_share_a_sampler_that_stops_when_they_leave(site: Any) -> None:
    sampler = site.sampler
    assert not sampler.running
    first, second = sampler.watch(), sampler.watch()
    assert sampler.running
    one, two = await first.next(), await second.next()
    assert one is two, "rendered once"
    site.go_on()
    assert await first.next() is await second.next()
    assert set(site.pauses) == {INTERVAL}
    number = sampler.number
    first.leave()
    first.leave()
    assert (sampler.running, sampler.watchers) == (True, 1)
    second.leave()
    assert (sampler.running, sampler.watchers) == (False, 0)
    site.go_on()
    await sampler.aclose()  # waits for the task
    assert sampler.number == number


async def test_a_watcher_that_was_ended_receives_nothing_more(site: Any) -> None:
    first, second = site.sampler.watch(), site.sampler.watch()
    await next_of(first)
    await next_of(second)
    waiting = asyncio.create_task(first.next())
    await asyncio.sleep(0)
    first.end()
    site.go_on()
    assert await asyncio.wait_for(waiting, TIMEOUT) is None
    await next_of(second)
    first.leave()
    second.leave()


async def test_a_late_watcher_receives_the_last_sample_at_once(site: Any) -> None:
    first = site.sampler.watch()
    sample = await first.next()
    second = site.sampler.watch()
    assert await second.next() is sample


async def test_after_a_time_without_watchers_nobody_receives_an_old_sample(site: Any) -> None:
    first = site.sampler.watch()
    await first.next()
    first.leave()
    site.clock.now += 3600.0
    second = site.sampler.watch()
    assert (await next_of(second))["now"] == site.clock.wall()


async def test_a_slow_watcher_skips_samples(site: Any) -> None:
    slow, quick = site.sampler.watch(), site.sampler.watch()
    await slow.next()
    await quick.next()
    for _ in range(5):
        site.go_on()
        newest = await quick.next()
    assert json.loads(newest)["changes"], "only the changes"
    whole = json.loads(await slow.next())
    assert "changes" not in whole
    assert [kernel["id"] for kernel in whole["kernels"]] == ["a-kernel", "another"]
    waiting = asyncio.ensure_future(slow.next())
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing was queued"
    site.go_on()
    assert await waiting is await quick.next()


async def test_closing_lets_all_watchers_go(site: Any) -> None:
    watcher = site.sampler.watch()
    await watcher.next()
    waiting = asyncio.ensure_future(watcher.next())
    await asyncio.sleep(0)
    await site.sampler.aclose()
    await site.sampler.aclose()
    assert await waiting is None
    assert await site.sampler.watch().next() is None
    assert not site.sampler.running


async def test_an_error_is_logged_once_and_the_next_sample_may_succeed(
    site: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site.source.fails = True
    watcher = site.sampler.watch()
    with caplog.at_level(logging.ERROR, "tornado.application"):
        waiting = asyncio.ensure_future(watcher.next())
        for paused in (1, 2, 3):
            await until(lambda n=paused: len(site.pauses) >= n, "the next sample failed")  # type: ignore[misc]
            if paused < 3:
                site.go_on()
        site.source.fails = False
        site.go_on()
        assert b"a-kernel" in await asyncio.wait_for(waiting, TIMEOUT)
    messages = [each.message for each in caplog.records if each.name == "tornado.application"]
    assert messages == ["the live view could not be sampled"]


async def test_a_kernel_that_cannot_be_read_hides_no_other(
    site: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(site.source.hub, "statistics", fail)
    watcher = site.sampler.watch()
    with caplog.at_level(logging.ERROR, "tornado.application"):
        odd, other = (await next_of(watcher))["kernels"]
        assert (odd["id"], odd["name"]) == ("a-kernel", "python3")
        assert "connections" not in odd
        assert other["id"] == "another"
        site.go_on()
        assert (await next_of(watcher))["kernels"] == []
        site.go_on()
    messages = [each.message for each in caplog.records if each.name == "tornado.application"]
    assert messages == ["the live view has no figures of kernel a-kernel"]
    monkeypatch.undo()
    site.go_on()
    while not (changed := (await next_of(watcher))["kernels"]):
        site.go_on()
    assert "connections" in changed[0]
    monkeypatch.setattr(site.source.hub, "statistics", fail)
    site.go_on()
    sample = await next_of(watcher)
    assert "changes" not in sample, "it has lost fields"
    assert len(sample["kernels"]) == 2
    watcher.leave()


async def test_other_work_comes_between_two_kernels(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = site.source.hub
    statistics, read, most = hub.statistics, 0, 0

    def counted() -> Any:
        nonlocal read
        read += 1
        return statistics()

    async def other_work() -> None:
        nonlocal most
        while True:
            before = read
            await asyncio.sleep(0)
            most = max(most, read - before)

    monkeypatch.setattr(hub, "statistics", counted)
    monkeypatch.setattr(site.source, "kernels", lambda: [("a-kernel", "python3", "idle")] * 50)
    working = asyncio.ensure_future(other_work())
    watcher = site.sampler.watch()
    await next_of(watcher)
    assert read == 50
    assert most == 1
    watcher.leave()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
