"""The routes of the descriptions of the REST API."""

from __future__ import annotations

import json

from kbridge.server.api import openapi, swagger
from kbridge.server.api.access import ApiHandler

__all__ = ["JsonDescriptionHandler", "OpenApiHandler", "YamlDescriptionHandler"]


class OpenApiHandler(ApiHandler):
    """`/api/openapi.json`; needs the token, like everything that says more than the version."""

    activity = False

    def get(self) -> None:
        """Describe the API as OpenAPI 3.1."""
        services = self.services
        self.reply(openapi.describe(services.base_url, services.auth.cookie_name))


class JsonDescriptionHandler(ApiHandler):
    """`/api/swagger.json`."""

    activity = False

    def get(self) -> None:
        """Describe the API as Swagger 2.0."""
        self.reply(swagger.describe(self.services.base_url))


class YamlDescriptionHandler(ApiHandler):
    """`/api/spec.yaml` and `/api/swagger.yaml`."""

    activity = False

    def get(self) -> None:
        """Describe the API in JSON, which is also YAML."""
        self.set_header("Content-Type", "text/x-yaml; charset=utf-8")
        self.finish(json.dumps(swagger.describe(self.services.base_url), indent=2))
