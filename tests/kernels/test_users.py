"""The rule that says which kernels a user reaches."""

from __future__ import annotations

import pytest

from kbridge.kernels.users import NOBODY, OPERATOR, User, visible


@pytest.mark.parametrize(
    ("user", "reached"),
    [
        (OPERATOR, {"", "alice", "bob"}),
        (User("bob", admin=True), {"", "alice", "bob"}),
        (User("alice"), {"alice"}),
        (User("ALICE"), set()),
        (User("services/alice"), set()),
        (NOBODY, set()),
    ],
)
def test_who_reaches_which_kernel(user: User, reached: set[str]) -> None:
    models = [{"id": "of the operator"}, *({"id": n, "user": n} for n in ("alice", "bob"))]
    assert {owner for owner in ("", "alice", "bob") if user.may_reach(owner)} == reached
    assert {model.get("user", "") for model in visible(user, models)} == reached
    assert {m.get("user", "") for m in models if user.may_reach_kernel(m)} == reached


@pytest.mark.parametrize(
    ("user", "owner", "kernel", "reached"),
    [
        (User("alice"), "alice", {"user": "alice"}, True),
        (User("alice"), "alice", {"user": "bob"}, False),
        (User("alice"), "bob", {"user": "alice"}, False),
        (User("alice"), "alice", {}, False),
        (User("root", admin=True), "alice", {"user": "bob"}, True),
        (OPERATOR, "alice", {"user": "bob"}, True),
        (NOBODY, "", {}, False),
    ],
)
def test_a_session_is_reached_with_its_kernel(
    user: User, owner: str, kernel: dict[str, str], reached: bool
) -> None:
    assert user.may_reach_session(owner, kernel) is reached


def test_the_ids_of_users_are_ignored() -> None:
    users = (OPERATOR, User("bob", admin=True), User("alice"), NOBODY)
    assert [user.may_choose_ids for user in users] == [True, True, False, False]
