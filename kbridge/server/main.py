"""The command `kbridge`.

`list`, `stop`, `restart`, `health`, `run`, `logs` and `mcp` do not load the server, so that they
start quickly.
"""

from __future__ import annotations

import os
import signal
import sys

from kbridge.server.cli.terminal import open_streams

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` by default."""
    open_streams()
    if hasattr(signal, "SIGUSR2"):  # it would end a server that does not handle it yet
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    args = sys.argv[1:] if argv is None else argv
    try:
        if args and args[0] in ("list", "stop"):
            from kbridge.server.cli import commands

            commands.run({"list": commands.ListApp, "stop": commands.StopApp}[args[0]], args[1:])
            return
        if args and args[0] == "health":
            from kbridge.server.cli import commands, health

            commands.run(health.HealthApp, args[1:])
            return
        if args and args[0] == "restart":
            from kbridge.server.cli import commands, restart

            commands.run(restart.RestartApp, args[1:])
            return
        if args and args[0] in ("run", "logs"):
            from kbridge.server.cli import commands, run

            commands.run({"run": run.RunApp, "logs": run.LogsApp}[args[0]], args[1:])
            return
        if args and args[0] == "mcp":
            from kbridge.server.cli import commands, mcp

            commands.run(mcp.McpApp, args[1:])
            return
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
