"""Whole samples, and changes from which a reader makes the same sample."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kbridge.kernels.users import NOBODY, OPERATOR, User
from kbridge.page.sample import SampleBuilder

KERNELS = st.dictionaries(
    st.sampled_from("abcd"),
    st.dictionaries(st.sampled_from(("state", "cpu", "clients")), st.integers(0, 1), max_size=3),
)


def kernel(kernel_id: str, **figures: Any) -> dict[str, Any]:
    return {"id": kernel_id, "state": "idle", **figures}


def build(builder: SampleBuilder, *kernels: dict[str, Any], now: int = 0) -> tuple[Any, Any]:
    """Return a sample as a new reader, and as one that has the sample before, receives it."""
    for each in kernels:
        builder.add(each)
    sample = builder.finish({"now": now})
    return json.loads(sample.whole), json.loads(sample.changes)


def complete(before: list[dict[str, Any]], sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all kernels, as docs/page.md says that a reader finds them."""
    if not sample.get("changes"):
        return list(sample["kernels"])
    known = {each["id"]: each for each in before}
    for each in sample["kernels"]:
        known[each["id"]] = {**known.get(each["id"], {}), **each}
    return [known[kernel_id] for kernel_id in sample.get("ids", known)]


def test_the_first_sample_is_whole() -> None:
    whole, changes = build(SampleBuilder(), kernel("a", cpu=1), now=7)
    assert whole == changes == {"now": 7, "kernels": [kernel("a", cpu=1)]}


def test_only_changed_fields_of_changed_kernels_are_sent() -> None:
    builder = SampleBuilder()
    build(builder, kernel("a", cpu=0), kernel("b", cpu=0))
    whole, changes = build(builder, kernel("a", cpu=0), kernel("b", cpu=1), now=1)
    assert whole["kernels"] == [kernel("a", cpu=0), kernel("b", cpu=1)]
    assert changes == {"now": 1, "changes": True, "kernels": [{"id": "b", "cpu": 1}]}
    _, changes = build(builder, kernel("a", cpu=0), kernel("b", cpu=1), now=2)
    assert changes == {"now": 2, "changes": True, "kernels": []}


def test_kernels_come_and_go() -> None:
    builder = SampleBuilder()
    build(builder, kernel("a"), kernel("b"))
    _, changes = build(builder, kernel("b"), kernel("c"))
    assert changes["kernels"] == [kernel("c")]
    assert changes["ids"] == ["b", "c"]


def test_a_kernel_that_loses_fields_makes_the_sample_whole() -> None:
    builder = SampleBuilder()
    build(builder, kernel("a", cpu=1), kernel("b"))
    whole, changes = build(builder, kernel("a"), kernel("b"))
    assert changes == whole
    assert "changes" not in whole
    _, changes = build(builder, kernel("a"), kernel("b"))
    assert changes["changes"] is True


def test_a_sample_that_was_given_up_changes_nothing() -> None:
    builder = SampleBuilder()
    build(builder, kernel("a", cpu=0))
    builder.add(kernel("a", cpu=1))
    builder.discard()
    _, changes = build(builder, kernel("a", cpu=1))
    assert changes["kernels"] == [{"id": "a", "cpu": 1}]


def test_the_size_of_changes_does_not_grow_with_idle_kernels() -> None:
    sizes = []
    for count in (100, 200):
        builder = SampleBuilder()
        for _ in range(2):
            for number in range(count):
                builder.add(kernel(str(number)))
            sample = builder.finish({})
        sizes.append(len(sample.changes))
    assert sizes[0] == sizes[1]


def test_each_form_is_rendered_once() -> None:
    builder = SampleBuilder()
    for _ in range(2):
        builder.add(kernel("a"))
        sample = builder.finish({})
    assert sample.whole is sample.whole
    assert sample.changes is sample.changes


def test_a_user_receives_their_kernels_and_the_public_figures_of_the_server() -> None:
    builder = SampleBuilder()
    builder.add(kernel("a"), "alice")
    builder.add(kernel("b"), "bob")
    builder.add(kernel("c"))
    sample = builder.finish({"now": 1, "version": "1", "rss": 7, "journals": {}})
    whole = json.loads(sample.of(User("alice")).whole)
    assert whole == {"now": 1, "version": "1", "kernels": [kernel("a")]}
    assert sample.of(User("alice")) is sample.of(User("alice"))
    assert sample.of(OPERATOR) is sample
    assert json.loads(sample.of(NOBODY).whole)["kernels"] == []


def test_a_user_is_not_told_when_other_kernels_come_go_or_change() -> None:
    builder = SampleBuilder()
    alice = User("alice")
    steps = [
        {"a": "alice"},
        {"a": "alice", "b": "bob"},
        {"a": "alice", "b": "bob", "c": ""},
        {"a": "alice"},
    ]
    for number, step in enumerate(steps):
        for kernel_id, user in step.items():
            builder.add(kernel(kernel_id), user)
        sample = builder.finish({"now": 0})
        told = json.loads(sample.of(alice).changes)
        if number:
            assert told == {"now": 0, "changes": True, "kernels": []}
            assert "ids" in json.loads(sample.changes)
    for figures in ({"cpu": 1}, {}):  # the second sample has fewer fields
        builder.add(kernel("a"), "alice")
        builder.add(kernel("b", **figures), "bob")
        sample = builder.finish({"now": 0})
        assert json.loads(sample.of(alice).changes)["kernels"] == []
    assert "changes" not in json.loads(sample.changes)
    assert "changes" not in json.loads(sample.of(User("bob")).changes)


def test_a_user_does_not_see_the_addresses_of_replicas() -> None:
    builder = SampleBuilder()
    for replica in ("http://10.0.0.1", "http://10.0.0.2"):
        builder.add(kernel("a", replica=replica), "alice")
        sample = builder.finish({"now": 0, "replica": replica})
        assert json.loads(sample.whole)["kernels"] == [kernel("a", replica=replica)]
        seen = sample.of(User("alice"))
        assert json.loads(seen.whole) == {"now": 0, "kernels": [kernel("a")]}
    assert json.loads(seen.changes) == {"now": 0, "changes": True, "kernels": []}
    assert json.loads(sample.changes)["kernels"] == [{"id": "a", "replica": replica}]


def test_a_kernel_that_gets_a_user_is_new_to_that_user() -> None:
    builder = SampleBuilder()
    for user in ("", "alice"):
        builder.add(kernel("a", cpu=1), user)
        sample = builder.finish({"now": 0})
    assert json.loads(sample.of(User("alice")).changes)["kernels"] == [kernel("a", cpu=1)]


@given(st.lists(KERNELS, max_size=6), st.dictionaries(st.sampled_from("abcd"), st.just("alice")))
def test_a_user_who_reads_changes_has_the_whole_sample(
    steps: list[dict[str, dict[str, int]]], users: dict[str, str]
) -> None:
    builder = SampleBuilder()
    known: list[dict[str, Any]] = []
    for step in steps:
        for kernel_id, figures in step.items():
            builder.add({"id": kernel_id, **figures}, users.get(kernel_id, "bob"))
        sample = builder.finish({"now": 0}).of(User("alice"))
        known = complete(known, json.loads(sample.changes))
        assert known == json.loads(sample.whole)["kernels"]
        assert {each["id"] for each in known} == step.keys() & users.keys()


@given(st.lists(KERNELS, max_size=6))
def test_a_reader_of_changes_has_the_whole_sample(steps: list[dict[str, dict[str, int]]]) -> None:
    builder = SampleBuilder()
    known: list[dict[str, Any]] = []
    for step in steps:
        kernels = [{"id": kernel_id, **figures} for kernel_id, figures in step.items()]
        whole, changes = build(builder, *kernels)
        known = complete(known, changes)
        assert known == whole["kernels"] == kernels
