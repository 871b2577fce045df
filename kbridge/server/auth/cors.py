"""Cross-Origin Resource Sharing: the headers of a reply (Fetch standard, section 3.2).

The settings are those of Jupyter's kernel gateway: each is the value of one header.
"""

from __future__ import annotations

from dataclasses import dataclass

from kbridge.server.auth.access_policy import AccessPolicy

__all__ = ["Cors"]

# Sent in replies to preflight requests if the settings are empty; the same as in Jupyter Server.
_ALLOW_HEADERS = "accept, content-type, authorization, x-xsrftoken"
_ALLOW_METHODS = "GET, PUT, POST, PATCH, DELETE, OPTIONS"


@dataclass(frozen=True, slots=True)
class Cors:
    """Values of the `Access-Control-*` headers; an empty one is not sent."""

    allow_credentials: str = ""
    allow_headers: str = ""
    allow_methods: str = ""
    expose_headers: str = ""
    max_age: str = ""

    def headers(
        self, policy: AccessPolicy, origin: str | None, *, preflight: bool
    ) -> dict[str, str]:
        """Return the headers for a request that came with `origin`.

        A single origin in the settings (or `*`) is sent unchanged in every reply. Of several
        origins, that of the request is sent, because the header cannot hold a list.
        """
        found: dict[str, str] = {}
        if len(policy.allow_origin) == 1 and policy.allow_origin_pat is None:
            found["Access-Control-Allow-Origin"] = policy.allow_origin[0]
        elif policy.allow_origin or policy.allow_origin_pat is not None:
            found["Vary"] = "Origin"
            if origin is not None and policy.foreign_allowed(origin):
                found["Access-Control-Allow-Origin"] = origin
        shared = "Access-Control-Allow-Origin" in found
        allow_headers, allow_methods = self.allow_headers, self.allow_methods
        if preflight and shared:
            allow_headers = allow_headers or _ALLOW_HEADERS
            allow_methods = allow_methods or _ALLOW_METHODS
        rest = {
            "Access-Control-Allow-Credentials": self.allow_credentials,
            "Access-Control-Allow-Headers": allow_headers,
            "Access-Control-Allow-Methods": allow_methods,
            "Access-Control-Expose-Headers": self.expose_headers,
            "Access-Control-Max-Age": self.max_age,
        }
        return found | {name: value for name, value in rest.items() if value}
