"""`/api/kernels` and what is below it, the websocket apart."""

from __future__ import annotations

from kbridge.errors import InvalidRequest
from kbridge.kernels.lifecycle.launchable import is_passable
from kbridge.server.handlers import ApiHandler, expect
from kbridge.server.services import Model

__all__ = ["InterruptHandler", "KernelHandler", "KernelsHandler", "RestartHandler", "env_of"]


def env_of(body: Model) -> dict[str, str] | None:
    """Return the environment that a client asks for.

    Raises
    ------
    InvalidRequest
        If it is no object of strings, or holds what no environment can.
    """
    env: dict[object, object] | None = expect(body, "env", dict)
    if env is None:
        return None
    found: dict[str, str] = {}
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidRequest("env is not an object of strings")
        if not name or "=" in name or not is_passable(name) or not is_passable(value):
            raise InvalidRequest("env holds a name or value that no environment can hold")
        found[name] = value
    return found


class KernelsHandler(ApiHandler):
    """`/api/kernels`."""

    def get(self) -> None:
        """List the kernels."""
        self.need_listing()
        self.reply(self.services.kernels.models())

    async def post(self) -> None:
        """Start a kernel."""
        body = self.body()
        kernels = self.services.kernels
        kernel_id = await kernels.start_kernel(
            kernel_name=expect(body, "name", str) or None,
            env=env_of(body),
            path=expect(body, "path", str),
        )
        self.reply_created(kernels.model(kernel_id), "kernels", kernel_id)


class KernelHandler(ApiHandler):
    """`/api/kernels/{id}`."""

    def get(self, kernel_id: str) -> None:
        """Describe a kernel."""
        self.reply(self.services.kernels.model(kernel_id))

    async def delete(self, kernel_id: str) -> None:
        """Shut a kernel down."""
        await self.services.kernels.shutdown_kernel(kernel_id)
        self.set_status(204)


class InterruptHandler(ApiHandler):
    """`/api/kernels/{id}/interrupt`."""

    async def post(self, kernel_id: str) -> None:
        """Interrupt a kernel."""
        await self.services.kernels.interrupt_kernel(kernel_id)
        self.set_status(204)


class RestartHandler(ApiHandler):
    """`/api/kernels/{id}/restart`."""

    async def post(self, kernel_id: str) -> None:
        """Restart a kernel, and answer when its process runs again."""
        await self.services.kernels.restart_kernel(kernel_id)
        self.reply(self.services.kernels.model(kernel_id))
