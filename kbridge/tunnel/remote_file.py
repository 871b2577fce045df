"""Read connection files on an ssh server."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Sequence

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command
from kbridge.wire.connection_info import FILE_LIMIT

__all__ = ["read_remote_file"]

_RUNTIME_DIR = ".local/share/jupyter/runtime"  # of Jupyter on Linux


async def read_remote_file(
    sshserver: str,
    path: str,
    sshkey: str | None = None,
    *,
    options: Sequence[str] = (),
    timeout: float = 30.0,
) -> bytes:
    """Return the content of a connection file on the ssh server, read with `cat`.

    Parameters
    ----------
    sshserver, sshkey, options
        See `kbridge.tunnel.tunnel.Tunnel`.
    path : str
        The file; relative to the home directory there, or to Jupyter's default runtime directory.
    timeout : float
        Seconds.

    Raises
    ------
    TunnelError
        If ssh fails, or the file does not exist; with the output of ssh and of the server.
    InvalidSshServer
        If the text does not name a server.
    """
    program = shutil.which("ssh")
    if program is None:
        raise TunnelError("there is no ssh on the PATH: install OpenSSH's client")
    name = shlex.quote(path)
    command = f"cat -- {name} 2>/dev/null || cat -- {_RUNTIME_DIR}/{name}"
    process = await asyncio.create_subprocess_exec(
        *(
            program,
            *options,
            *ssh_command.login(sshkey, timeout),
            *ssh_command.server(sshserver),
            command,
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            content, stderr = await process.communicate()
    except TimeoutError:
        raise TunnelError(f"ssh to {sshserver} did not answer for {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        output = stderr.decode(errors="replace").strip()
        hint = ssh_command.advice(output)
        raise TunnelError(f"{path} cannot be read on {sshserver}: {output}{hint and f' ({hint})'}")
    if len(content) > FILE_LIMIT:
        raise TunnelError(f"{path} on {sshserver} is too long for a connection file")
    return content
