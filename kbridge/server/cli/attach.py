"""`kbridge attach`: a server for kernels that other programs started."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import List, Unicode, default

from kbridge.connect.files import find_connection_file
from kbridge.errors import InvalidRequest
from kbridge.kernels.attached.connection_file import (
    check_connection_file,
    kernel_id_for,
    read_connection_file,
)
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.startup_checks import check_settings
from kbridge.server.cli.app import KbridgeApp

if TYPE_CHECKING:
    from kbridge.kernels.manager import BridgeKernelManager

__all__ = ["AttachApp"]

_EXAMPLES = """\
kbridge attach kernel-1234.json                   # a file in Jupyter's runtime directory, or a path
kbridge attach 'kernel-*.json'                    # all that match
kbridge attach kernel-1234.json --ssh me@cluster  # behind ssh; a file here, or there
kbridge attach a.json b.json --name one --name two
"""
_ALIASES: dict[str, Any] = {
    **KbridgeApp.aliases,
    "ssh": "AttachApp.ssh",
    "ssh-key": "AttachApp.ssh_key",
    "name": "AttachApp.kernel_names",
}
_SUBCOMMANDS: dict[str, Any] = {}


class AttachApp(KbridgeApp):
    """Serve kernels that other programs started."""

    name = "kbridge-attach"
    description = """Serve kernels that other programs started, on this machine or behind ssh.

    Takes connection files: a path, a name in Jupyter's runtime directory, or a glob pattern.
    The kernels are listed like any other. They are never ended: DELETE only detaches one.
    Every option of `kbridge` works here, too.
    """
    examples = _EXAMPLES
    aliases = _ALIASES
    subcommands = _SUBCOMMANDS
    takes_arguments = True

    ssh = Unicode(
        "",
        help="""Where the kernels are: `host`, `user@host:port`, an ssh:// URL, or an alias from
        ssh_config. OpenSSH logs in without asking for a password.""",
    ).tag(config=True)
    ssh_key = Unicode(
        "", help="File with the ssh key, if neither ssh_config nor an agent has it."
    ).tag(config=True)
    ssh_options = List(
        Unicode(),
        help="""Additional arguments for ssh, such as `-F` and a file; each is one item.""",
    ).tag(config=True)
    kernel_names = List(
        Unicode(),
        help="""Names to list the kernels under, in order. By default the names in their
        connection files.""",
    ).tag(config=True)

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the settings; exit if no connection file is given."""
        super().initialize(argv)
        if not self.extra_args:
            self.log.error("kbridge attach needs a connection file; see kbridge attach --help")
            self.exit(2)

    @default("config_file_name")
    def _default_config_file_name(self) -> str:
        return "kbridge_config"  # the same file as for `kbridge`

    @default("registry_url")
    def _default_registry_url(self) -> str:
        return "none"  # this command does not adopt the kernels of a server that crashed

    def attached_ids(self) -> list[str]:
        """Return the ids of the kernels that the arguments name."""
        found: list[Path] = []
        for argument in self.extra_args:
            try:
                found += connection_files(argument, self.runtime_dir)
            except OSError:
                found.append(Path(argument))  # behind ssh, or `prepare` will refuse it
        return [kernel_id_for(path) for path in found]

    async def prepare(self, kernels: BridgeKernelManager) -> None:
        """Attach the kernels.

        Raises
        ------
        InvalidRequest
            If a connection file does not exist or is not valid.
        TunnelError
            If ssh cannot reach the kernels.
        """
        await check_settings(kernels, starts_kernels=False)
        names = list(self.kernel_names)
        try:
            for argument in self.extra_args:
                for path, info in await self._find(argument):
                    name = names.pop(0) if names else str(info.get("kernel_name") or "attached")
                    await self._attach(kernels, path, name, info)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        await kernels.hubs.wait_resumed()

    async def _find(self, argument: str) -> list[tuple[Path, dict[str, Any]]]:
        try:
            paths = connection_files(argument, self.runtime_dir)
        except OSError as error:
            if not self.ssh:
                raise InvalidRequest(str(error)) from None
            return [(Path(argument), await self._find_remote(argument))]
        return [(path, read_connection_file(path)) for path in paths]

    async def _find_remote(self, name: str) -> dict[str, Any]:
        from kbridge.tunnel.remote_file import read_remote_file

        found = await read_remote_file(
            self.ssh, name, self.ssh_key or None, options=self.ssh_options
        )
        return check_connection_file(found, f"{name} on {self.ssh}")

    async def _attach(
        self, kernels: BridgeKernelManager, path: Path, name: str, info: dict[str, Any]
    ) -> None:
        kernel_id = kernel_id_for(path)
        if not self.ssh:
            kernels.attach(AttachedKernelManager(kernel_id, name, info, source=str(path)))
            return
        from kbridge.tunnel.tunnel import SshOptions, Tunnel

        tunnel = await Tunnel.open(
            info, self.ssh, self.ssh_key or None, options=SshOptions(self.ssh_options), log=self.log
        )
        kernel = AttachedKernelManager(
            kernel_id,
            name,
            tunnel.connection_info,
            source=f"{path} over {self.ssh}",
            release=tunnel.aclose,
        )
        try:
            kernels.attach(kernel)
        except BaseException:
            await kernel.release()
            raise


def connection_files(argument: str, runtime_dir: str) -> list[Path]:
    """Return the connection files that a path, a name or a glob pattern stands for.

    Raises
    ------
    OSError
        If there is none; the message says where it was searched for.
    """
    if glob.has_magic(argument):
        for pattern in (argument, str(Path(runtime_dir, argument))):
            found = sorted(glob.glob(pattern))  # noqa: PTH207  # Path has no absolute patterns
            if found:
                return [Path(path) for path in found]
    return [Path(find_connection_file(argument, path=[".", runtime_dir]))]
