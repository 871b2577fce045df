"""Connection files on the other side of ssh."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Sequence

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command

__all__ = ["read_remote_file"]

_RUNTIME_DIR = ".local/share/jupyter/runtime"  # where Linux has Jupyter's
_LIMIT = 1 << 20


async def read_remote_file(
    sshserver: str,
    path: str,
    sshkey: str | None = None,
    *,
    options: Sequence[str] = (),
    timeout: float = 30.0,
) -> bytes:
    """Read a connection file of the ssh server's, by `cat`.

    Parameters
    ----------
    sshserver, sshkey, options
        As `kbridge.tunnel.tunnel.Tunnel` has them.
    path : str
        The file; relative to the home directory there, or to Jupyter's usual runtime directory.
    timeout : float
        Seconds.

    Raises
    ------
    TunnelError
        If there is no way, or no such file; in the words of ssh and of the other side.
    InvalidSshServer
        If the text does not name a server.
    """
    program = shutil.which("ssh")
    if program is None:
        raise TunnelError("there is no ssh on the PATH: install OpenSSH's client")
    name = shlex.quote(path)
    look = f"cat -- {name} 2>/dev/null || cat -- {_RUNTIME_DIR}/{name}"
    process = await asyncio.create_subprocess_exec(
        *(
            program,
            *options,
            *ssh_command.login(sshkey, timeout),
            *ssh_command.server(sshserver),
            look,
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            found, words = await process.communicate()
    except TimeoutError:
        raise TunnelError(f"ssh to {sshserver} has not answered for {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words_said = words.decode(errors="replace").strip()
        hint = ssh_command.advice(words_said)
        raise TunnelError(
            f"{path} cannot be read on {sshserver}: {words_said}{hint and f' ({hint})'}"
        )
    if len(found) > _LIMIT:
        raise TunnelError(f"{path} on {sshserver} is too long for a connection file")
    return found
