"""`/healthz` and `/readyz`: for programs that restart servers, or send clients to them."""

from __future__ import annotations

from kbridge.errors import NotFound
from kbridge.server.api.access import ApiHandler
from kbridge.server.readiness import OK

__all__ = ["HealthHandler", "ReadyHandler"]


class HealthHandler(ApiHandler):
    """`/healthz`: the event loop turns."""

    public = True
    activity = False

    def get(self) -> None:
        """Answer."""
        self.reply({"status": OK})

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()


class ReadyHandler(ApiHandler):
    """`/readyz`: kernels can be started, and files written."""

    public = True
    activity = False
    # Anybody may ask, and the number of such lines per minute is limited: they would hide others.
    # `Readiness` logs a change of the answer.
    quiet = True

    async def get(self) -> None:
        """Answer with the result of each check; the status is 503 if one failed."""
        readiness = self.services.readiness
        if readiness is None:
            raise NotFound("this server checks nothing")
        checks = await readiness.check()
        ready = all(text == OK for text in checks.values())
        self.reply({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def head(self) -> None:
        """Answer like `get`, without the body."""
        await self.get()
