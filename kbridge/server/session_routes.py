"""`/api/sessions` and what is below it."""

from __future__ import annotations

from kbridge.server.handlers import ApiHandler

__all__ = ["SessionHandler", "SessionsHandler"]


class SessionsHandler(ApiHandler):
    """`/api/sessions`."""

    def get(self) -> None:
        """List the sessions."""
        self.need_listing()
        self.reply(self.services.sessions.list())

    async def post(self) -> None:
        """Create a session with its kernel, or answer with the one that its path has."""
        model = await self.services.sessions.create(self.body())
        self.reply_created(model, "sessions", str(model["id"]))


class SessionHandler(ApiHandler):
    """`/api/sessions/{id}`."""

    def get(self, session_id: str) -> None:
        """Describe a session."""
        self.reply(self.services.sessions.get(session_id))

    async def patch(self, session_id: str) -> None:
        """Rename a session, or give it another kernel."""
        self.reply(await self.services.sessions.patch(session_id, self.body()))

    async def delete(self, session_id: str) -> None:
        """Delete a session and its kernel."""
        await self.services.sessions.delete(session_id)
        self.set_status(204)
