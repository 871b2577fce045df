"""The command line of `kbridge`: its short options, flags, commands and examples."""

from __future__ import annotations

from typing import Any

from jupyter_core.application import base_aliases, base_flags

__all__ = ["ALIASES", "EXAMPLES", "FLAGS", "SUBCOMMANDS"]

EXAMPLES = """\
kbridge                                   # serve on http://127.0.0.1:8888, with a token
kbridge --port 9999 --ip 0.0.0.0          # for other machines; add --certfile for https
kbridge --pool python3=2                  # keep two kernels started in advance
kbridge --sock ~/kbridge.sock             # a unix socket that only you can open
kbridge --shutdown-kernels-on-exit=false  # leave kernels running for the next start
kbridge --generate-config                 # write a config file with every setting
kbridge attach kernel-1234.json           # serve a kernel that is already running
kbridge run train.py                      # run a program on a kernel of a running server
kbridge list                              # show running servers
kbridge status                            # show their kernels, and whether they are ready
kbridge restart 8888                      # restart a server after an upgrade; kernels stay
kbridge stop 8888                         # stop a server and its kernels

In front of it, for a server with files and notebooks:

jupyter lab --gateway-url=http://127.0.0.1:8888 --GatewayClient.auth_token=TOKEN
"""
ALIASES: dict[str, Any] = {
    "log-level": base_aliases["log-level"],
    "config": base_aliases["config"],
    "ip": "KbridgeApp.ip",
    "port": "KbridgeApp.port",
    "port-retries": "KbridgeApp.port_retries",
    "sock": "KbridgeApp.sock",
    "base-url": "KbridgeApp.base_url",
    "token": "KbridgeApp.token",
    "log-format": "KbridgeApp.log_format",
    "metrics-token": "KbridgeApp.metrics_token",
    "metrics-port": "KbridgeApp.metrics_port",
    "metrics-ip": "KbridgeApp.metrics_ip",
    "audit-log": "KbridgeApp.audit_log",
    "audit-code": "KbridgeApp.audit_code",
    "certfile": "KbridgeApp.certfile",
    "keyfile": "KbridgeApp.keyfile",
    "client-ca": "KbridgeApp.client_ca",
    "ssl-version": "KbridgeApp.ssl_version",
    "allow-origin": "KbridgeApp.allow_origin",
    "root-dir": "BridgeKernelManager.root_dir",
    "max-kernels": "BridgeKernelManager.max_kernels",
    "max-kernels-per-user": "BridgeKernelManager.max_kernels_per_user",
    "default-kernel": "BridgeKernelManager.default_kernel_name",
    "pool": "BridgeKernelManager.pool",
    "kernel-ip": "BridgeKernelManager.kernel_ip",
    "transport": "BridgeKernelManager.transport",
    "transport-encryption": "BridgeKernelManager.transport_encryption",
    "attach-dir": "BridgeKernelManager.attach_dir",
    "registry-url": "KbridgeApp.registry_url",
    "cluster": "KbridgeApp.cluster",
    "advertise-url": "KbridgeApp.advertise_url",
    "followers": "KbridgeApp.followers",
    "lease-seconds": "KbridgeApp.lease_seconds",
    "drain-seconds": "KbridgeApp.drain_seconds",
    "shutdown-kernels-on-exit": "KbridgeApp.shutdown_kernels_on_exit",
    "seed-uri": "BridgeKernelManager.seed_uri",
    "cull-idle": "BridgeKernelManager.cull_idle_timeout",
}
FLAGS: dict[str, Any] = {
    "debug": (base_flags["debug"][0], "Log everything (--log-level=DEBUG)."),
    "generate-config": (
        base_flags["generate-config"][0],
        "Write a config file with every setting and its default, and end.",
    ),
    "show-config": (base_flags["show-config"][0], "Show what is set, and end."),
    "show-config-json": (base_flags["show-config-json"][0], "The same as JSON."),
    "no-access-log": (
        {"KbridgeApp": {"access_log": False}},
        "Log no requests (KbridgeApp.access_log).",
    ),
    "y": (base_flags["y"][0], "Answer yes to all questions."),
}
SUBCOMMANDS: dict[str, Any] = {
    "attach": ("kbridge.server.cli.attach.AttachApp", "Serve kernels that other programs started."),
    "completion": (
        "kbridge.server.cli.completion.CompletionApp",
        "Print the completion for bash, fish or zsh.",
    ),
    "health": ("kbridge.server.cli.health.HealthApp", "Check that running servers answer."),
    "kernelgateway": (
        "kbridge.server.cli.kernelgateway.KernelGatewayApp",
        "Serve kernels, with the options of `jupyter kernelgateway`.",
    ),
    "list": ("kbridge.server.cli.commands.ListApp", "List running servers."),
    "logs": ("kbridge.server.cli.run.LogsApp", "Show the output of an execution."),
    "mcp": (
        "kbridge.server.cli.mcp.McpApp",
        "Give a language model the kernels of a server (Model Context Protocol).",
    ),
    "restart": (
        "kbridge.server.cli.restart.RestartApp",
        "Restart a running server, given its port or socket; its kernels stay.",
    ),
    "run": ("kbridge.server.cli.run.RunApp", "Run a program or a notebook on a kernel."),
    "status": ("kbridge.server.cli.status.StatusApp", "Show what running servers do."),
    "stop": (
        "kbridge.server.cli.commands.StopApp",
        "Stop a running server, given its port or socket.",
    ),
}
