"""The keys of kernels, and the certificates that their jobs trust."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import zmq

from kbridge.errors import SetupError

__all__ = ["choose_encryption", "connection_keys", "trusted"]

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def choose_encryption(manager: Any, policy: str | None, wish: str) -> str:
    """Give a kernel manager keys for CurveZMQ, unless that is off or the kernel has no support.

    Parameters
    ----------
    manager : KernelManager
        The manager of the kernel.
    policy : str or None
        jupyter_client's policy for this start; None for that of the manager.
    wish : str
        The setting of the provisioner: auto, required or off; empty if the manager decides.

    Returns
    -------
    str
        A warning for the log, if the traffic is not encrypted.

    Raises
    ------
    SetupError
        If encryption is required, and impossible.
    """
    if not hasattr(manager, "_transport_encryption_policy"):
        if wish == "required":
            raise SetupError("encryption needs jupyter_client 8.10 or newer")
        return "the traffic is not encrypted, which needs jupyter_client 8.10 or newer"
    wished = {wish, manager._transport_encryption_policy(policy)}  # noqa: SLF001
    supported = manager._kernel_supports_curve_encryption()  # noqa: SLF001
    if "required" in wished and not supported:
        raise SetupError(
            "encryption is required, but the kernelspec does not declare"
            ' "supported_encryption": ["curve"] in its metadata'
        )
    if (wish == "off" and "required" not in wished) or not wished & {"auto", "required"}:
        return "the traffic is not encrypted: encryption is off"
    if not supported:
        return (
            "the traffic is not encrypted: its kernelspec does not declare"
            ' "supported_encryption": ["curve"] in its metadata'
        )
    if manager.curve_publickey is None:
        manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()
    return ""


def connection_keys(manager: Any) -> dict[str, str]:
    """Return the part of the connection information that is known before the kernel starts."""
    keys = {
        "transport": "tcp",
        "key": _text(manager.session.key),
        "signature_scheme": manager.session.signature_scheme,
        "kernel_name": manager.kernel_name,
    }
    if getattr(manager, "curve_publickey", None) is not None:
        keys["curve_publickey"] = _text(manager.curve_publickey)
        keys["curve_secretkey"] = _text(manager.curve_secretkey)
    return keys


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key


def trusted(certfile: str, cafile: str) -> str | None:
    """Return the PEM text of the certificates that a job trusts, without keys; None without TLS.

    Raises
    ------
    SetupError
        If the file has none.
    """
    if not certfile:
        return None
    path = Path(cafile or certfile)
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        kept, inside = [], False
        for line in lines:
            inside = inside or line == _BEGIN
            if inside:
                kept.append(line)
            inside = inside and line != _END
        text = "\n".join([*kept, ""])
        if not kept:
            raise ValueError("no BEGIN CERTIFICATE")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} has no certificates that could be used: {error}") from None
    return text
