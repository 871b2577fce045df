"""The users of kernels, and the rule that says which kernels a user reaches.

A kernel has the name of the user who started it, and so has a session. All parts that show or reach
kernels ask `User.may_reach`; nothing else decides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["NOBODY", "OPERATOR", "User", "visible"]


@dataclass(frozen=True, slots=True)
class User:
    """The person or program that a request comes from.

    Attributes
    ----------
    name : str
        The name of the user; empty for the operator, who has the token of the server.
    admin : bool
        True if the user reaches the kernels of all users, and the server itself.
    """

    name: str = ""
    admin: bool = False

    def may_reach(self, owner: str) -> bool:
        """Return True if this user may see and use a kernel.

        Parameters
        ----------
        owner : str
            The name of the user who started the kernel; empty if it was the operator, or if another
            program started the kernel.
        """
        return self.admin or (bool(self.name) and self.name == owner)

    def may_reach_kernel(self, model: Mapping[str, Any]) -> bool:
        """Return True if this user may see and use the kernel of a REST model."""
        return self.may_reach(model.get("user", ""))

    def may_reach_session(self, owner: str, kernel: Mapping[str, Any]) -> bool:
        """Return True if this user may see and use a session.

        Parameters
        ----------
        owner : str
            The name of the user who created the session; empty for the operator.
        kernel : mapping
            The REST model of its kernel. It may be of another user if an administrator gave it to
            the session.
        """
        return self.may_reach(owner) and self.may_reach_kernel(kernel)

    @property
    def may_choose_ids(self) -> bool:
        """True if a new kernel gets the id that is in this user's request.

        Otherwise the id is ignored: whether an id is free would tell of other users' kernels.
        """
        return self.admin


OPERATOR: Final = User(admin=True)
"""The client that has the token of the server; every client of a server without users."""

NOBODY: Final = User()
"""A client that was not authenticated; it reaches no kernel."""


def visible(user: User, models: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the REST models of those kernels that a user may reach."""
    return [dict(model) for model in models if user.may_reach_kernel(model)]
