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
