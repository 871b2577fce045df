"""Rendezvous hashing: which replicas follow a kernel.

Every replica computes the same order from the same ids, without asking another one. If a replica
joins or leaves, only the kernels whose order contains it at the front change their followers.

D. Thaler and C. Ravishankar: Using Name-Based Mappings to Increase Hit Rates. IEEE/ACM Transactions
on Networking 6 (1), 1998.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

__all__ = ["followers", "order"]


def order(kernel_id: str, replicas: Iterable[str]) -> list[str]:
    """Return the ids of replicas in the order in which they are responsible for a kernel."""
    return sorted(replicas, key=lambda replica_id: _weight(kernel_id, replica_id), reverse=True)


def followers(kernel_id: str, owner: str, replicas: Iterable[str], count: int) -> list[str]:
    """Return the ids of the replicas that follow a kernel, the first successor first.

    Parameters
    ----------
    kernel_id : str
        The kernel.
    owner : str
        The id of the replica that serves it.
    replicas : iterable of str
        The ids of all replicas that are alive.
    count : int
        The number of followers; there are fewer if there are not enough replicas.
    """
    others = (replica_id for replica_id in replicas if replica_id != owner)
    return order(kernel_id, others)[: max(count, 0)]


def _weight(kernel_id: str, replica_id: str) -> tuple[bytes, str]:
    text = f"{len(kernel_id)}/{kernel_id}/{replica_id}".encode()
    return blake2b(text, digest_size=8).digest(), replica_id
