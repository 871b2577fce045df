"""The command `kbridge`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Final

from kbridge.server.cli.command_line import SUBCOMMANDS
from kbridge.server.cli.terminal import open_streams

__all__ = ["main"]

# Commands that do not load the server, so that they start quickly.
_QUICK: Final = frozenset(SUBCOMMANDS) - {"attach", "kernelgateway"}


def main(argv: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` by default."""
    open_streams()
    if hasattr(signal, "SIGUSR2"):  # it would end a server that does not handle it yet
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    args = sys.argv[1:] if argv is None else argv
    try:
        if args and args[0] in _QUICK:
            from traitlets import import_item

            from kbridge.server.cli import commands

            commands.run(import_item(SUBCOMMANDS[args[0]][0]), args[1:])
            return
        # The start imports much and drops little, so collections would be a tenth of its work;
        # `serve` turns them on again.
        gc.disable()
        from jupyter_core.application import NoStart

        from kbridge.server.cli.app import KbridgeApp

        if args and args[0] == "attach":
            from kbridge.server.cli.attach import AttachApp

            app: KbridgeApp = AttachApp.instance()
            args = args[1:]
        elif args and args[0] == "kernelgateway":
            from kbridge.server.cli.kernelgateway import KernelGatewayApp

            app = KernelGatewayApp.instance()
            args = args[1:]
        else:
            app = KbridgeApp.instance()
        try:
            app.initialize(args)
            app.start()
        except NoStart:
            return
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `kbridge --help | head`: the reader has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        gc.enable()
