"""`/metrics`: the state of the server, for Prometheus."""

from __future__ import annotations

import hmac

from tornado import web

from kbridge.errors import Forbidden, NotFound, UsersUnavailable
from kbridge.server.api.access import AccessMixin, NotFoundHandler
from kbridge.server.api.services import Services
from kbridge.server.auth.authenticator import Authenticator, parse_authorization
from kbridge.server.safe_log import log_request

__all__ = ["MetricsHandler", "make_metrics_application"]


class MetricsHandler(AccessMixin):
    """`/metrics`, for the operator, administrators, and clients that have the token of the metrics.

    The values are those of all kernels together, so users do not see them.
    """

    public = True

    def prepare(self) -> None:
        """Check access: the policy of the server first, then the token of the metrics."""
        super().prepare()
        preflight = self.request.method == "OPTIONS"
        if self.user.admin or preflight or self._has_metrics_token():
            return
        if self.auth_method is None:
            if self.problem:
                raise UsersUnavailable(self.problem)
            raise Forbidden("a valid token is needed")
        self.require_admin()

    def _has_metrics_token(self) -> bool:
        token = self.services.metrics_token.encode()
        query = self.request.query_arguments.get("token", [b""])[-1]
        header = parse_authorization(self.request.headers.get("Authorization"))
        found = hmac.compare_digest(header, token) | hmac.compare_digest(query, token)
        return bool(token) and found

    async def get(self) -> None:
        """Send the metrics, in the format that the header Accept names."""
        metrics = self.services.metrics
        if metrics is None:
            raise NotFound("this server has no metrics")
        accept = self.request.headers.get("Accept", "")
        body, content_type = await metrics.exposition(accept)
        self.set_header("Content-Type", content_type)
        self.finish(body)

    async def head(self) -> None:
        """Answer like `get`, without the body."""
        await self.get()


def make_metrics_application(services: Services, auth: Authenticator) -> web.Application:
    """Return an application that serves only the metrics of a server, with other access rules."""
    alone = Services(services.kernels, services.sessions, services.hubs, auth)
    alone.metrics = services.metrics
    return web.Application(
        [(r"/metrics", MetricsHandler)],
        default_handler_class=NotFoundHandler,
        log_function=log_request,
        services=alone,
    )
