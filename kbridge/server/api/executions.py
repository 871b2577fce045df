"""REST handlers of the executions of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.connection import executions
from kbridge.server.api.pass_on import KernelApiHandler

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["ExecutionHandler", "ExecutionsHandler"]


class _OfKernel(KernelApiHandler):
    """Base of these handlers; pages ask regularly, so a request does not count as activity."""

    activity = False

    def hub_of(self, kernel_id: str) -> Hub | None:
        """Return the hub of a kernel; None if it has none.

        Raises
        ------
        KernelNotFound
            If no kernel has that id.
        """
        self.services.kernels.model(kernel_id)
        return self.services.hubs.get(kernel_id)


class ExecutionsHandler(_OfKernel):
    """`/api/kernels/{id}/executions`."""

    async def get(self, kernel_id: str) -> None:
        """List the executions of a kernel, newest last."""
        wanted = executions.parse_filter(self.request.query_arguments)
        found = await executions.list_executions(self.hub_of(kernel_id), wanted)
        self.set_header("Content-Type", "application/json")
        self.finish(found)


class ExecutionHandler(_OfKernel):
    """`/api/kernels/{id}/executions/{msg_id}`."""

    def get(self, kernel_id: str, msg_id: str) -> None:
        """Describe an execution."""
        self.reply(executions.find_execution(self.hub_of(kernel_id), msg_id))

    def delete(self, kernel_id: str, msg_id: str) -> None:
        """Delete the record of an execution that has ended."""
        executions.forget_execution(self.hub_of(kernel_id), msg_id)
        self.set_status(204)
