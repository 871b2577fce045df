"""How often something may be done: no clock."""

from kbridge.server.toll import Toll


def test_one_each_so_many_seconds() -> None:
    toll = Toll(2.0, at_once=1)
    assert toll.free(100.0)
    toll.pay()
    assert not toll.free(100.0)
    toll.pay()  # done nevertheless
    assert not toll.free(101.0)
    assert toll.wait(101.0) == 1.0
    assert toll.free(102.5)
    assert toll.wait(102.5) == 0.0


def test_what_was_not_used_is_made_up_for_to_a_degree() -> None:
    toll = Toll(1.0, at_once=3)
    done = 0
    while toll.free(1000.0):
        toll.pay()
        done += 1
    assert done == 3


def test_many_are_paid_for_at_once() -> None:
    toll = Toll(0.5, at_once=4)
    assert toll.free(10.0)
    toll.pay(10)
    assert toll.wait(10.0) == 3.0


def test_the_last_payment_can_be_taken_back_once() -> None:
    toll = Toll(1.0, at_once=1)
    for _ in range(3):
        toll.free(10.0)
        toll.pay()
    assert toll.wait(10.0) == 2.0
    toll.refund()
    toll.refund()
    assert toll.wait(10.0) == 1.0


def test_what_costs_more_is_charged_and_not_refunded() -> None:
    toll = Toll(1.0, at_once=1)
    toll.free(10.0)
    toll.pay()
    toll.charge(4.0)
    assert toll.wait(10.0) == 4.0
    toll.refund()
    assert toll.wait(10.0) == 3.0
