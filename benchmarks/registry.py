"""Measures the database of a cluster: `python -m benchmarks.registry --url=postgresql+psycopg://...`.

Each replica is a process with its own connection. It does in a loop what a replica does: it renews
its lease with the states of all of its kernels, reads the changes of the others, and writes the
acknowledged places of some sessions. A real replica does this about twice per second; here, they do
it as fast as the database answers, so the result is the number of replicas that it can carry.

By default the database is an SQLite file in a temporary directory. Use an empty database: the rows
of the cluster `benchmark` stay in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import uuid
from multiprocessing.connection import Connection
from pathlib import Path

from kbridge.errors import RegistryError
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import KernelRow, Place, Replica, encode
from kbridge.kernels.registry.registry import Registry

__all__ = ["measure"]

_LEASE = 60.0
_DETAILS = encode({"connection": {"key": "k" * 36}, "launch": "x" * 1000})


def _replica(url: str, number: int, kernels: int, seconds: float, parent: Connection) -> None:
    """Be one replica; send the milliseconds of renewals and of writes."""
    registry = Registry(url)
    registry.prepare()
    name = f"{number}-{uuid.uuid4().hex}"
    store = ClusterStore(
        registry,
        Replica(name, "benchmark", f"http://10.0.0.{number}/", f"host{number}", 1, "s", "1"),
    )
    store.join(_LEASE)
    ids = [str(uuid.uuid4()) for _ in range(kernels)]
    rows = [KernelRow(each, "python3", "used", 1, "s", "", _DETAILS) for each in ids]
    store.write({("kernel", row.kernel_id): row for row in rows})
    parent.send("ready")
    parent.recv()
    renewals, writes, refused = [], [], 0
    since = None
    end = time.monotonic() + seconds
    turn = 0
    while (begin := time.monotonic()) < end:
        turn += 1
        states = {each: json.dumps({"last_activity": turn}) for each in ids}
        try:
            since = store.renew(_LEASE, states, since).revision
            middle = time.monotonic()
            store.put_changes([Place(each, '"session"', str(turn)) for each in ids], [])
        except RegistryError:  # a locked SQLite file
            refused += 1
            continue
        renewals.append((middle - begin) * 1e3)
        writes.append((time.monotonic() - middle) * 1e3)
    parent.send((renewals, writes, refused))
    registry.close()


def measure(url: str, replicas: int, kernels: int, seconds: float) -> dict[str, float]:
    """Let replicas use a database for some seconds.

    Parameters
    ----------
    url : str
        The database, for SQLAlchemy.
    replicas, kernels : int
        The number of replicas, and of kernels of each.
    seconds : float
        The time.

    Returns
    -------
    dict of str to float
        `rate`, the turns (one renewal and one write) of all replicas per second, the medians
        `renewal` and `write` in milliseconds, and the number of turns that were `refused`.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(replicas):
        near, far = context.Pipe()
        process = context.Process(target=_replica, args=(url, number, kernels, seconds, far))
        process.start()
        far.close()
        pipes.append(near)
        processes.append(process)
    try:
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("begin")
        results = [pipe.recv() for pipe in pipes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    renewals, writes = ([each for result in results for each in result[i]] for i in range(2))
    return {
        "rate": len(writes) / seconds,
        "refused": sum(result[2] for result in results),
        "renewal": statistics.median(renewals),
        "write": statistics.median(writes),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="the database, for SQLAlchemy")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--kernels", type=int, default=50, help="kernels of each replica")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        url = options.url or f"sqlite:///{Path(home) / 'registry.sqlite'}"
        found = measure(url, options.replicas, options.kernels, options.seconds)
    print(f"{found['rate']:.0f} turns per second of {options.replicas} replicas together")
    print(f"{found['refused']:.0f} turns were refused, because the file was locked for too long")
    print(f"median: renewal {found['renewal']:.2f} ms, write {found['write']:.2f} ms")


if __name__ == "__main__":
    main()
