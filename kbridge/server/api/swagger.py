"""The description of the REST API as Swagger 2.0, which Jupyter Server and the gateway publish.

It is derived from the OpenAPI description, and says less: the fields of bodies, and the statuses of
successful replies.
"""

from __future__ import annotations

from typing import Any, Final

from kbridge.server.api.openapi import describe as describe_in_openapi

__all__ = ["describe"]

_PREFIXES: Final = ("/api", "/kernelspecs/")
_ERROR: Final = {
    "description": "An error",
    "schema": {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
    },
}


def describe(base_url: str) -> dict[str, Any]:
    """Return the description of a server below `base_url`."""
    newer = describe_in_openapi(base_url)
    schemas = newer["components"]["schemas"]
    return {
        "swagger": "2.0",
        "info": {**newer["info"], "description": "Jupyter kernels over HTTP and websockets"},
        "basePath": base_url,
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": {
            "token": {
                "type": "apiKey",
                "name": "Authorization",
                "in": "header",
                "description": "`token TOKEN` or `Bearer TOKEN`",
            }
        },
        "security": [{"token": []}],
        "paths": {
            path: _path(operations, schemas)
            for path, operations in newer["paths"].items()
            if path.startswith(_PREFIXES)
        },
    }


def _path(operations: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in operations.items():
        if name == "parameters":
            found[name] = [_parameter(parameter) for parameter in value]
        elif name != "head":
            found[name] = _operation(value, schemas)
    return found


def _operation(newer: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [_parameter(parameter) for parameter in newer.get("parameters", ())]
    if "requestBody" in newer:
        name = newer["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        fields = schemas[name.rpartition("/")[2]]["properties"]
        properties = {
            field: {"type": _type({"schema": schema})} for field, schema in fields.items()
        }
        schema = {"type": "object", "properties": properties}
        parameters.append({"name": "body", "in": "body", "schema": schema})
    success = next(iter(newer["responses"]))  # the first one is that of success
    found: dict[str, Any] = {
        "summary": newer["summary"],
        "responses": {success: {"description": "Success"}, "default": _ERROR},
    }
    return {**found, "parameters": parameters} if parameters else found


def _parameter(newer: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": newer["name"],
        "in": newer["in"],
        "required": newer.get("required", False),
        "type": _type(newer),
    }


def _type(newer: dict[str, Any]) -> str:
    """Return the type of an argument or a field; Swagger 2.0 has no null, and one type at most.

    Lists and objects in a URL are texts.
    """
    kinds = newer.get("schema", {}).get("type", "string")
    kind = str(kinds if isinstance(kinds, str) else kinds[0])
    return "string" if kind == "array" else kind
