"""Rendezvous hashing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.cluster.rendezvous import followers, order

IDS = st.lists(st.text(max_size=8), unique=True, max_size=8)


@given(st.text(max_size=8), IDS, st.randoms())
def test_the_order_is_that_of_the_ids_alone(kernel_id, replicas, random):
    shuffled = random.sample(replicas, len(replicas))
    found = order(kernel_id, replicas)
    assert sorted(found) == sorted(replicas)
    assert order(kernel_id, shuffled) == found


@given(st.text(max_size=8), IDS, st.text(max_size=8))
def test_a_replica_that_leaves_changes_the_place_of_no_other(kernel_id, replicas, gone):
    rest = [replica_id for replica_id in replicas if replica_id != gone]
    without = [replica_id for replica_id in order(kernel_id, replicas) if replica_id != gone]
    assert order(kernel_id, rest) == without


def test_the_order_is_the_same_in_every_version():
    """Replicas of two versions must agree during an upgrade."""
    assert order("kernel", ["a", "b", "c", "d"]) == ["a", "c", "d", "b"]
    assert order("other", ["a", "b", "c", "d"]) == ["b", "a", "c", "d"]


def test_kernels_are_spread_evenly():
    first = Counter(order(f"kernel-{i}", ["a", "b", "c", "d"])[0] for i in range(4000))
    assert set(first) == {"a", "b", "c", "d"}
    assert all(800 < count < 1200 for count in first.values()), first


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_the_owner_follows_nothing(count):
    found = followers("kernel", "d", ["a", "b", "c", "d"], count)
    assert found == ["a", "c", "b"][:count]
    assert followers("kernel", "d", ["d"], count) == []


def test_a_negative_count_is_none():
    assert followers("kernel", "a", ["a", "b"], -1) == []
