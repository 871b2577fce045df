"""Start replicas of the standalone server: servers with one registry and one cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.measure import BenchmarkError
from benchmarks.servers import HIGH_LIMITS, Server

FOLLOWING = "Following kernel {}"
TIMEOUT = 60.0


@contextmanager
def cluster(server: Server, count: int, options: Sequence[str] = ()) -> Iterator[list[Server]]:
    """Run `count` replicas, twins of `server`, for a `with` block; their registry is a file."""
    home = server.twin(()).home
    home.mkdir(parents=True)
    shared = (
        *HIGH_LIMITS,
        "--cluster=bench",
        f"--registry-url=sqlite:///{home / 'registry.sqlite'}",
        "--drain-seconds=0",
        *options,
    )
    with ExitStack() as stack:
        replicas = [server.twin(shared) for _ in range(count)]
        for replica in replicas:
            replica.token = server.token
            stack.enter_context(replica)
        yield replicas


def wait_followed(replicas: Sequence[Server], kernel_ids: Sequence[str]) -> None:
    """Wait until each kernel has a follower.

    Raises
    ------
    BenchmarkError
        If one has none after 60 s.
    """
    deadline = time.monotonic() + TIMEOUT
    missing = {FOLLOWING.format(kernel_id) for kernel_id in kernel_ids}
    while missing:
        text = "\n".join(replica.log_text() for replica in replicas)
        missing = {words for words in missing if words not in text}
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{len(missing)} kernels have no follower after {TIMEOUT:g} s")
        time.sleep(0.2)
