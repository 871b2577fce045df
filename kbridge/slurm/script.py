"""Builds the batch script of a job."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["address_text", "batch_script"]

_FUTURE = "from __future__ import annotations\n"
_OWN = "from kbridge.slurm.sealed import Seals, proof, public_key\n"


def batch_script(python: str, parameters: dict[str, Any]) -> bytes:
    """Return the script for sbatch: Python that runs one kernel.

    Parameters
    ----------
    python : str
        The interpreter on the node, as in the first line of a script: `/usr/bin/env python3`.
    parameters : dict
        `kernel`: the id of the kernel. `addresses`: where to call, as `host:port`. `certificate`:
        the PEM text of the certificates to trust, or None for a connection without TLS. `token`,
        `bridge`: the one-time token and the bridge's public key, in hexadecimal. `patience`:
        seconds to wait for the bridge.
    """
    package = files("kbridge.slurm")
    sources = [
        (package / name).read_text(encoding="utf-8").replace(_FUTURE, "").replace(_OWN, "")
        for name in ("sealed.py", "job.py")
    ]
    # ASCII in a literal of Python: no value can begin a line or end the literal.
    literal = ascii(json.dumps(parameters))
    lines = [f"#!{python}\n", _FUTURE, *sources, f"\nsys.exit(main(json.loads({literal})))\n"]
    return "".join(lines).encode()


def address_text(ip: str, port: int) -> str:
    """Return an address and a port as the parameters of a job have them."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
