"""The token bucket, with chosen times."""

from kbridge.flow.token_bucket import TokenBucket


def test_one_action_per_interval() -> None:
    bucket = TokenBucket(2.0, burst=1)
    assert bucket.ready(100.0)
    bucket.spend()
    assert not bucket.ready(100.0)
    bucket.spend()  # overdraws
    assert not bucket.ready(101.0)
    assert bucket.delay(101.0) == 1.0
    assert bucket.ready(102.5)
    assert bucket.delay(102.5) == 0.0


def test_a_burst_after_a_pause_is_limited() -> None:
    bucket = TokenBucket(1.0, burst=3)
    count = 0
    while bucket.ready(1000.0):
        bucket.spend()
        count += 1
    assert count == 3


def test_an_action_may_use_more_tokens_than_are_left() -> None:
    bucket = TokenBucket(0.5, burst=4)
    assert bucket.ready(10.0)
    bucket.spend(10)
    assert bucket.delay(10.0) == 3.0
    assert bucket.used(11.0) == 8.0


def test_tokens_are_spent_only_if_the_action_may_start() -> None:
    bucket = TokenBucket(0.5, burst=4)
    assert bucket.try_spend(10.0, 4)
    assert bucket.used(10.0) == 4.0
    assert not bucket.try_spend(10.0, 1)
    assert bucket.used(10.0) == 4.0
    assert bucket.try_spend(10.25, 9)
    assert bucket.used(10.25) == 12.5


def test_tokens_can_be_overdrawn_at_a_time() -> None:
    bucket = TokenBucket(0.5, burst=4, limit=9)
    assert bucket.overdraw(10.0, 6) == 6.0
    assert bucket.overdraw(11.0, 1) == 5.0
    assert bucket.overdraw(11.0, 100) == 9.0


def test_time_before_a_spend_counts_after_it() -> None:
    """A caller may spend first and ask later."""
    bucket = TokenBucket(1.0, burst=1)
    assert bucket.ready(10.0)
    bucket.spend(5)
    bucket.spend(1)
    assert bucket.delay(14.0) == 1.0


def test_a_clock_that_stands_still_restores_no_tokens() -> None:
    bucket = TokenBucket(1.0, burst=2)
    bucket.ready(10.0)
    bucket.spend(2)
    assert bucket.used(10.0) == 2.0
    assert bucket.used(9.0) == 2.0
    assert bucket.used(10.5) == 1.5


def test_the_last_spend_can_be_undone_once() -> None:
    bucket = TokenBucket(1.0, burst=1)
    for _ in range(3):
        bucket.ready(10.0)
        bucket.spend()
    assert bucket.delay(10.0) == 2.0
    bucket.undo()
    bucket.undo()
    assert bucket.delay(10.0) == 1.0


def test_a_charge_delays_and_is_not_undone() -> None:
    bucket = TokenBucket(1.0, burst=1)
    bucket.ready(10.0)
    bucket.spend()
    bucket.charge(4.0)
    assert bucket.delay(10.0) == 4.0
    bucket.undo()
    assert bucket.delay(10.0) == 3.0


def test_an_undone_spend_never_leaves_more_than_a_full_bucket() -> None:
    bucket = TokenBucket(1.0, burst=1)
    bucket.ready(10.0)
    bucket.spend(3)
    assert bucket.used(12.0) == 1.0
    bucket.undo()
    assert bucket.used(12.0) == 0.0
    bucket.spend()
    assert bucket.used(12.0) == 1.0


def test_used_tokens_are_remembered_up_to_a_limit() -> None:
    bucket = TokenBucket(1.0, burst=10, limit=12.5)
    bucket.ready(0.0)
    bucket.spend(1000)
    assert bucket.used(0.0) == 12.5
    assert bucket.delay(0.0) == 2.5


def test_reset_makes_all_tokens_available() -> None:
    bucket = TokenBucket(1.0, burst=1)
    bucket.ready(10.0)
    bucket.spend(100)
    bucket.reset()
    bucket.undo()
    assert bucket.used(10.0) == 0.0
    assert bucket.ready(10.0)
