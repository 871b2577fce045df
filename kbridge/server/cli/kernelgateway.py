"""`kbridge kernelgateway`: a replacement for `jupyter kernelgateway`, with the same options.

The package of the Jupyter Kernel Gateway installs a program `jupyter-kernelgateway`, which makes
`jupyter kernelgateway` work. If kbridge's wheel contained that program, it would silently overwrite
the gateway's, and removing either package would break the other. So the program is written on
request (`--install-alias`), and only if it does not exist yet.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from traitlets import Bool, TraitError, Unicode, default

from kbridge._version import __version__
from kbridge.server.cli.app import KbridgeApp

__all__ = ["KernelGatewayApp", "install_alias", "remove_alias"]

_PROGRAM = "jupyter-kernelgateway"
_MARK = "# Written by `kbridge kernelgateway --install-alias`."
# A `#!` line has a limited length and cannot contain a space in the path; /bin/sh can do both.
_SCRIPT = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
{mark}
import sys

from kbridge.server.main import main

main(["kernelgateway", *sys.argv[1:]])
"""
_EXAMPLES = """\
kbridge kernelgateway --KernelGatewayApp.auth_token=secret --KernelGatewayApp.port=8888
kbridge kernelgateway --install-alias   # makes `jupyter kernelgateway` start kbridge
kbridge kernelgateway --remove-alias
"""
_ALIASES: dict[str, Any] = {
    **KbridgeApp.aliases,
    "port_retries": "KbridgeApp.port_retries",
    "ssl_version": "KbridgeApp.ssl_version",
    "seed_uri": "BridgeKernelManager.seed_uri",
    "api": "KernelGatewayApp.api",
    "alias-dir": "KernelGatewayApp.alias_dir",
}
_FLAGS: dict[str, Any] = {
    **KbridgeApp.flags,
    "install-alias": (
        {"KernelGatewayApp": {"install_alias": True}},
        "Write the program jupyter-kernelgateway, so that `jupyter kernelgateway` starts kbridge.",
    ),
    "remove-alias": (
        {"KernelGatewayApp": {"remove_alias": True}},
        "Remove the program that --install-alias wrote.",
    ),
}
_SUBCOMMANDS: dict[str, Any] = {}


class KernelGatewayApp(KbridgeApp):
    """Serve kernels as the Jupyter Kernel Gateway does."""

    # Programs that start the gateway configure the logger with this name.
    name = "kbridge-kernelgateway"
    description = """Serve kernels in place of `jupyter kernelgateway` 3.0, in its websocket mode.

    Takes the gateway's options (--KernelGatewayApp.*, --JupyterWebsocketPersonality.*,
    --MappingKernelManager.*), its config file jupyter_kernel_gateway_config.py and its KG_*
    environment variables, besides everything that `kbridge --help-all` shows. Unlike the gateway,
    it makes a random token if none is set.
    """
    examples = _EXAMPLES
    aliases = _ALIASES
    flags = _FLAGS
    subcommands = _SUBCOMMANDS
    more_config_files = ("jupyter_kernel_gateway_config",)

    api = Unicode(
        "kernel_gateway.jupyter_websocket",
        help="The gateway's name of the API to serve; kbridge has no other. (KG_API)",
    ).tag(config=True)
    alias_dir = Unicode(
        help="""Directory that --install-alias and --remove-alias work in. By default that of the
        programs of this Python environment."""
    ).tag(config=True)
    install_alias = Bool(False, help="Write the program jupyter-kernelgateway, and end.").tag(
        config=True
    )
    remove_alias = Bool(False, help="Remove that program, and end.").tag(config=True)

    @default("config_file_name")
    def _default_config_file_name(self) -> str:
        return "kbridge_config"

    @default("list_kernels")
    def _default_list_kernels(self) -> bool:
        return False  # as in the gateway

    @default("alias_dir")
    def _default_alias_dir(self) -> str:
        return sysconfig.get_path("scripts")

    def start(self) -> None:
        """Run the server until a signal arrives, or write or remove the alias."""
        try:
            if self.install_alias:
                self.print(f"wrote {install_alias(Path(self.alias_dir))}")
            elif self.remove_alias:
                self.print(f"removed {remove_alias(Path(self.alias_dir))}")
            else:
                super().start()
        except TraitError as error:
            self.log.critical("%s", error)
            self.exit(1)

    def print(self, text: str) -> None:
        """Write a line to the terminal."""
        sys.stdout.write(text + "\n")

    def listening(self, url: str) -> None:
        """Log the server's URL with the gateway's message, which programs wait for."""
        if self.token_is_random:
            self.log.warning(
                "no token is set. The kernel gateway would serve without one; kbridge created a"
                " random token. Set KG_AUTH_TOKEN or KernelGatewayApp.auth_token; an empty value"
                " turns authentication off."
            )
        address = url.removesuffix(self.base_url)  # programs read the port at the line's end
        self.log.info("kbridge %s kernel gateway is available at %s", __version__, address)


def install_alias(directory: Path) -> Path:
    """Write the program `jupyter-kernelgateway` and return its path.

    Raises
    ------
    TraitError
        If another package's program is there, or the directory cannot be written to.
    """
    path = directory / _PROGRAM
    if os.name == "nt":
        raise TraitError("--install-alias writes a shell script: not on Windows")
    if path.exists() and not _is_ours(path):
        raise TraitError(
            f"{path} is there already, from another package"
            " (pip uninstall jupyter_kernel_gateway removes the gateway's)"
        )
    try:
        path.write_text(_SCRIPT.format(python=sys.executable, mark=_MARK), encoding="utf-8")
        path.chmod(0o755)
    except OSError as error:
        raise TraitError(f"cannot write {path}: {error.strerror}") from None
    return path


def remove_alias(directory: Path) -> Path:
    """Remove the program that `install_alias` wrote and return its path.

    Raises
    ------
    TraitError
        If it does not exist, or belongs to another package.
    """
    path = directory / _PROGRAM
    if not path.exists() or not _is_ours(path):
        raise TraitError(f"{path} was not written by --install-alias")
    path.unlink()
    return path


def _is_ours(path: Path) -> bool:
    return _MARK in path.read_text(encoding="utf-8", errors="replace")
