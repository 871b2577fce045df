"""A description of the REST API, as Swagger 2.0 (what Jupyter Server and the gateway publish).

The table here is compared with the routes by the tests.
"""

from __future__ import annotations

from typing import Any

from kbridge._version import __version__

__all__ = ["describe"]

_ERROR = {
    "description": "An error",
    "schema": {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
    },
}

# path: {method: (summary, status of success, fields of the JSON body)}
_Operations = dict[str, tuple[str, int, dict[str, str]]]
_PATHS: dict[str, _Operations] = {
    "/api": {"get": ("Version of the server; needs no token", 200, {})},
    "/api/status": {"get": ("State of the server", 200, {})},
    "/api/me": {"get": ("The identity and the permissions of the client", 200, {})},
    "/api/shutdown": {"post": ("End the server, and its kernels unless they are kept", 200, {})},
    "/api/restart": {"post": ("Restart the server, not its kernels", 200, {"force": "boolean"})},
    "/api/spec.yaml": {"get": ("This description", 200, {})},
    "/api/swagger.yaml": {"get": ("This description", 200, {})},
    "/api/swagger.json": {"get": ("This description", 200, {})},
    "/api/kernelspecs": {"get": ("All kernelspecs, and the name of the default", 200, {})},
    "/api/kernelspecs/{name}": {"get": ("A kernelspec", 200, {})},
    "/kernelspecs/{name}/{path}": {"get": ("A file of a kernelspec", 200, {})},
    "/api/kernels": {
        "get": ("The running kernels", 200, {}),
        "post": ("Start a kernel", 201, {"name": "string", "path": "string", "env": "object"}),
    },
    "/api/kernels/{id}": {
        "get": ("A kernel", 200, {}),
        "delete": ("Shut a kernel down", 204, {}),
    },
    "/api/kernels/{id}/interrupt": {"post": ("Interrupt a kernel", 204, {})},
    "/api/kernels/{id}/restart": {"post": ("Restart a kernel", 200, {})},
    "/api/kernels/{id}/channels": {"get": ("Upgrade to the websocket of a kernel", 101, {})},
    "/api/kernels/{id}/executions": {"get": ("The executions of a kernel, newest last", 200, {})},
    "/api/kernels/{id}/executions/{msg_id}": {
        "get": ("An execution", 200, {}),
        "delete": ("Forget the output of an execution", 204, {}),
    },
    "/api/sessions": {
        "get": ("The sessions", 200, {}),
        "post": (
            "Create a session, or return the one of the same path",
            201,
            {"path": "string", "name": "string", "type": "string", "kernel": "object"},
        ),
    },
    "/api/sessions/{id}": {
        "get": ("A session", 200, {}),
        "patch": (
            "Rename a session, or give it another kernel",
            200,
            {"path": "string", "name": "string", "type": "string", "kernel": "object"},
        ),
        "delete": ("Delete a session and its kernel", 204, {}),
    },
}

# path: {optional argument of the URL of its GET: type}
_ARGUMENTS: dict[str, dict[str, str]] = {
    "/api/status": {"statistics": "boolean"},
    "/api/me": {"permissions": "string"},
    "/api/kernels/{id}/channels": {
        "session_id": "string",
        "since": "string",
        "parents": "string",
    },
    "/api/kernels/{id}/executions": {
        "state": "string",
        "session_id": "string",
        "cell_id": "string",
        "limit": "integer",
    },
}


def describe(base_url: str) -> dict[str, Any]:
    """Return the description of a server below `base_url`."""
    return {
        "swagger": "2.0",
        "info": {
            "title": "kbridge",
            "description": "Jupyter kernels over HTTP and websockets",
            "version": __version__,
        },
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
        "paths": {path: _path(path, operations) for path, operations in _PATHS.items()},
    }


def _path(path: str, operations: _Operations) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {}
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "type": "string"} for name in names
        ]
    for method, (summary, status, fields) in operations.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {str(status): {"description": "Success"}, "default": _ERROR},
        }
        if fields:
            properties = {name: {"type": kind} for name, kind in fields.items()}
            schema = {"type": "object", "properties": properties}
            operation["parameters"] = [{"name": "body", "in": "body", "schema": schema}]
        elif method == "get" and path in _ARGUMENTS:
            operation["parameters"] = [
                {"name": name, "in": "query", "required": False, "type": kind}
                for name, kind in _ARGUMENTS[path].items()
            ]
        found[method] = operation
    return found
