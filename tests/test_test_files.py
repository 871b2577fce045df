"""Test files mirror modules, and the number of private names in tests does not rise."""

from __future__ import annotations

import ast
from pathlib import Path

import kbridge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kbridge.__file__).parent
FOLDERS = sorted(p.name for p in PACKAGE.iterdir() if (ROOT / "tests" / p.name).is_dir())
# Files of tests that are about a subject and not about one module.
SUBJECTS = {
    "link/kernel.py",
    "page/console.py",
    "page/live.py",
    "connect/peer_suites.py",
    "connection/abc_base.py",
    "connection/contract.py",
    "hub/broadcast/parents.py",
    "hub/faults.py",
    "hub/takeover.py",
    "jupyter/contract.py",
    "jupyter/hooks.py",
    "jupyter/manager.py",
    "jupyter/peer_suite.py",
    "kernels/ipykernel.py",
    "kernels/lifecycle/faults.py",
    "kernels/lifecycle/ports.py",
    "kernels/lifecycle/starts.py",
    "labextension/reload.py",
    "server/api/close_codes.py",
    "server/api/kernels.py",
    "server/api/kernelspecs.py",
    "server/api/sessions.py",
    "server/api/status.py",
    "server/http/keep_alive.py",
    "storage/faults.py",
    "tunnel/tunnel_faults.py",
    "wire/dialect_cases.py",
    "wire/fuzz/fuzz.py",
}
# Modules without their own test file, and the file that tests them: interfaces, data classes, and
# parts that make sense only within a larger part. A name that ends in a slash stands for a package.
TESTED_BY = {
    "mcp/runs.py": "mcp/test_tools.py",
    "client/comms.py": "integration/test_python_client.py",
    "client/execution.py": "integration/test_python_client.py",
    "client/rest.py": "integration/test_python_client.py",
    "client/server.py": "integration/test_python_client.py",
    "cluster/protocol.py": "cluster/test_peers.py",
    "cluster/relays.py": "server/api/test_pass_on.py",
    "cluster/remote_kernel.py": "cluster/test_remote_kernels.py",
    "connect/methods.py": "connect/test_mixin.py",
    "connection/abc.py": "connection/test_contract.py",
    "connection/base.py": "connection/test_contract.py",
    "connection/incoming.py": "connection/test_channels.py",
    "connection/info.py": "connection/test_channels.py",
    "connection/pipeline.py": "jupyter/test_hooks.py",
    "connection/settings.py": "connection/test_channels.py",
    "flow/batch.py": "storage/test_blocks.py",
    "hub/broadcast/rendering.py": "hub/broadcast/test_delivery.py",
    "hub/broadcast/state_export.py": "hub/test_takeover.py",
    "hub/broadcast/state_import.py": "hub/test_takeover.py",
    "hub/context.py": "hub/kernel/test_connection.py",
    "wire/compiled.py": "wire/test_speedups.py",
    "hub/events.py": "hub/test_hub.py",
    "hub/kernel/events.py": "hub/kernel/test_connection.py",
    "hub/kernel/process_link.py": "hub/kernel/test_connection.py",
    "jupyter/api.py": "jupyter/test_gateway_proxy.py",
    "jupyter/gateway_requests.py": "jupyter/test_gateway_proxy.py",
    "jupyter/supported.py": "integration/test_extension_install.py",
    "kernels/attached/attacher.py": "kernels/attached/test_attached.py",
    "kernels/attached/connection_file.py": "kernels/attached/test_attached.py",
    "kernels/attached/directory.py": "kernels/attached/test_attached.py",
    "kernels/attached/manager.py": "kernels/attached/test_attached.py",
    "kernels/index.py": "kernels/test_manager.py",
    "kernels/interface.py": "kernels/test_manager.py",
    "kernels/kernel.py": "kernels/test_manager.py",
    "kernels/lifecycle/factory.py": "kernels/test_manager.py",
    "kernels/lifecycle/interrupt.py": "kernels/test_manager.py",
    "kernels/lifecycle/kernel_process.py": "kernels/test_manager.py",
    "kernels/lifecycle/started.py": "kernels/test_manager.py",
    "kernels/registry/cluster_registry.py": "integration/test_replicas.py",
    "kernels/registry/transfer.py": "kernels/attached/test_elsewhere.py",
    "kernels/registry/cluster_rows.py": "kernels/registry/test_cluster_store.py",
    "kernels/registry/schema.py": "kernels/registry/test_cluster_store.py",
    "kernels/registry/models.py": "kernels/registry/test_registry.py",
    "kernels/registry/persistent.py": "kernels/registry/test_adoption.py",
    "kernels/registry/store.py": "kernels/registry/test_registry.py",
    "kernels/services.py": "kernels/test_manager.py",
    "kernels/settings.py": "kernels/test_manager.py",
    "kernels/shutdown.py": "kernels/test_manager.py",
    "link/handshake.py": "link/test_websocket.py",
    "link/holder/__main__.py": "link/holder/test_process.py",
    "link/holder/buffer.py": "link/holder/test_process.py",
    "link/holder/client.py": "link/holder/test_process.py",
    "link/holder/header.py": "link/holder/test_process.py",
    "link/holder/held.py": "link/holder/test_process.py",
    "link/holder/packets.py": "link/holder/test_process.py",
    "link/holder/unix_path.py": "link/holder/test_process.py",
    "link/interfaces.py": "link/test_memory.py",
    "link/linger.py": "link/test_websocket.py",
    "link/zmtp/connecting.py": "link/zmtp/test_link.py",
    "link/zmtp/connection.py": "link/zmtp/test_link.py",
    "link/zmtp/writing.py": "link/zmtp/test_link.py",
    "link/pyzmq/former.py": "link/pyzmq/test_link.py",
    "link/pyzmq/sockets.py": "link/pyzmq/test_link.py",
    "server/api/live_source.py": "server/test_server.py",
    "server/api/oauth.py": "integration/test_jupyterhub.py",
    "server/api/rest.py": "server/api/test_kernels.py",
    "server/api/routes.py": "server/api/test_access.py",
    "server/api/services.py": "server/api/test_websocket.py",
    "server/cli/attach.py": "integration/test_attach.py",
    "server/cli/cluster_settings.py": "server/test_setting_checks.py",
    "server/cli/command_line.py": "server/test_main.py",
    "server/cli/configuration.py": "server/cli/test_app.py",
    "server/cli/health.py": "server/test_main.py",
    "server/cli/monitoring_settings.py": "server/test_metrics_listener.py",
    "server/cli/restart.py": "integration/test_upgrade.py",
    "server/cli/run.py": "integration/test_run.py",
    "server/cli/serve.py": "server/test_server.py",
    "server/cli/server_client.py": "server/cli/test_commands.py",
    "server/components.py": "server/test_server.py",
    "server/config.py": "server/test_server.py",
    "server/http/admission.py": "server/http/test_guarded_server.py",
    "server/metrics.py": "server/api/test_metrics.py",
    "server/http/request_gate.py": "server/http/test_guarded_server.py",
    "slurm/endings.py": "slurm/test_provisioner.py",
    "slurm/submission.py": "slurm/test_provisioner.py",
    "slurm/kernel_job.py": "slurm/test_callback.py",
    "slurm/encryption.py": "slurm/test_launch.py",
    "slurm/settings.py": "slurm/test_options.py",
    "slurm/script.py": "slurm/test_job.py",
    "storage/": "storage/test_store.py",
    "tunnel/remote_file.py": "integration/test_attach.py",
}
# Attribute names that begin with an underscore but are documented by Python.
DOCUMENTED = {"_asdict", "_exit", "_fields", "_fields_", "_make", "_replace"}
# Uses of private attributes of other objects in tests. Lower it when the number falls.
PRIVATE_USES = 179


def modules() -> set[str]:
    """Paths of the modules of `FOLDERS`, relative to the package."""
    found = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    return {str(path) for path in found if path.parts[0] in FOLDERS}


def mirrored() -> set[str]:
    """Module paths that have a test file, such as `wire/v1.py` for tests/wire/test_v1.py."""
    tests = ROOT / "tests"
    found = [p.relative_to(tests) for name in FOLDERS for p in (tests / name).rglob("test_*.py")]
    return {str(path.with_name(path.name.removeprefix("test_"))) for path in found}


def test_folders_were_found() -> None:
    assert {"wire", "flow", "link", "hub", "kernels", "connection", "server"} <= set(FOLDERS)


def test_each_test_file_mirrors_a_module_or_is_about_a_subject() -> None:
    assert mirrored() - modules() <= SUBJECTS


def test_each_module_has_a_test_file_or_names_the_file_that_tests_it() -> None:
    packages = tuple(name for name in TESTED_BY if name.endswith("/"))
    missing = {path for path in modules() - mirrored() if not path.startswith(packages)}
    assert not missing - TESTED_BY.keys(), "add tests/X/test_Y.py, or a line to TESTED_BY"
    gone = TESTED_BY.keys() - missing - set(packages)
    assert not gone, "remove the lines of modules that are gone or have a test file"
    assert all((ROOT / "tests" / path).exists() for path in TESTED_BY.values())


def private_uses(source: str) -> int:
    """Return how often code uses a private attribute of an object other than `self`."""
    return sum(
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in DOCUMENTED
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"})
        for node in ast.walk(ast.parse(source))
    )


def test_private_uses_are_counted() -> None:
    assert private_uses("a._b; self._c; d._replace(e=f._g); os._exit(1)") == 2


def test_private_uses_do_not_rise() -> None:
    count = sum(private_uses(path.read_text()) for path in (ROOT / "tests").rglob("*.py"))
    assert count <= PRIVATE_USES, "use public behaviour instead"
