"""The description of the REST API, as OpenAPI 3.1.

The tests compare its paths with the routes, and the replies of a server with it. The older
description (`kbridge.server.api.swagger`) is derived from this one.
"""

from __future__ import annotations

from http.client import responses
from typing import Any, Final

from kbridge._version import __version__
from kbridge.connection.executions import STATES
from kbridge.server.api.schemas import PERMISSIONS, SCHEMAS, Schema, ref

__all__ = ["describe"]

_ABOUT: Final = """\
Jupyter kernels over HTTP and websockets. The paths, models and status codes are those of Jupyter
Server and the Jupyter Kernel Gateway, with additions: executions, health and metrics.

Every route also answers `OPTIONS` with 204. A request that no operation describes is answered with
404 or 405, one with a head that is too large with 414 or 431, and one with a body that is too large
with 413. These errors have the schema `Error`, too. A path of the API that ends in a slash is
redirected to the path without it.

A request that changes something and is authenticated only by the cookie must come from a page of
this server, or repeat the value of the cookie `_xsrf` in its header `X-XSRFToken`.

kbridge ignores fields and arguments that it does not know.
"""

_RETRY: Final = {
    "Retry-After": {
        "description": "Seconds after which the request may succeed",
        "schema": {"type": "integer", "minimum": 1},
        "required": True,
    }
}
# Status: when it is used.
_ERRORS: Final[dict[int, str]] = {
    400: "The body, an argument or a part of the path is not valid; `message` names it",
    401: "The token is wrong",
    403: "No valid token, a foreign Host or Origin, too many kernels, or listing is turned off",
    404: "There is no such kernel, kernelspec, session, execution or file",
    409: "The state of the object does not permit the request",
    413: "The body is too large",
    500: "The kernel, or its kernelspec, has an error; `message` says which",
    501: "The kernel, or this server, cannot do this",
    502: "The kernel cannot be reached over ssh",
    503: "The server shuts down or restarts, or has too much to do",
}
# Statuses of the operations that may start, change or read a kernel.
_START: Final = (400, 403, 404, 413, 500, 502, 503)
_CHANGE: Final = (400, 403, 404, 500, 501, 502, 503)
_READ: Final = (400, 403, 404, 503)

_JSON: Final = "application/json"
_TOKENS: Final[list[dict[str, list[str]]]] = [
    {"bearer": []},
    {"token": []},
    {"query": []},
    {"cookie": []},
]


def _content(schema: Schema, kind: str = _JSON) -> Schema:
    return {kind: {"schema": schema}}


def _list(name: str) -> Schema:
    return {"type": "array", "items": ref(name)}


def _argument(name: str, schema: Schema, description: str) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }


def _success(description: str, schema: Schema | None = None, kind: str = _JSON) -> Schema:
    found: Schema = {"description": description}
    return {**found, "content": _content(schema, kind)} if schema is not None else found


def _operation(
    summary: str,
    replies: dict[int, Schema],
    errors: tuple[int, ...] = (403, 503),
    *,
    body: Schema | None = None,
    **more: Any,
) -> Schema:
    """Return an operation; `errors` are statuses of `_ERRORS`, `body` is that of the request."""
    found: Schema = {"summary": summary, **more}
    if body is not None:
        found["requestBody"] = body
    found["responses"] = {str(status): reply for status, reply in replies.items()}
    found["responses"] |= {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in errors
    }
    return found


def _body(name: str, *, required: bool = False) -> Schema:
    return {"required": required, "content": _content(ref(name))}


_STRING: Final[Schema] = {"type": "string"}
_STATES: Final[Schema] = {"type": "array", "items": {"enum": list(STATES)}}
_PARAMETERS: Final[dict[str, str]] = {
    "name": "The name of a kernelspec",
    "path": "The path of a file, which may have slashes",
    "kernel_id": "The id of a kernel",
    "msg_id": "The `msg_id` of an `execute_request`",
    "session_id": "The id of a session",
}
_VERSION: Final = _operation(
    "Version of the server",
    {200: _success("The version", ref("Version"))},
    security=[],
)
_HEALTH: Final = _operation(
    "The event loop turns",
    {200: _success("It does", ref("Health"))},
    security=[],
)
_READY: Final = _operation(
    "Kernels can be started, and files written",
    {
        200: _success("The server is ready", ref("Readiness")),
        503: _success("The server is not ready", {"anyOf": [ref("Readiness"), ref("Error")]}),
    },
    (403, 404),
    security=[],
)
_METRICS: Final = _operation(
    "The metrics, for Prometheus",
    {
        200: {
            "description": "Metrics, in the format that the header Accept names",
            "content": {
                "text/plain": {"schema": _STRING},
                "application/openmetrics-text": {"schema": _STRING},
            },
        }
    },
    (403, 404, 503),
    security=[*_TOKENS, {"metricsBearer": []}, {"metricsQuery": []}],
)
_MODULE: Final = _operation(
    "The client for browser pages",
    {
        200: _success("A JavaScript module", _STRING, "text/javascript"),
        304: _success("The browser has this version"),
    },
    (403, 404, 503),
    security=[],
)
_FILE: Final = _operation(
    "A file of a kernelspec",
    {200: _success("The file", {}, "*/*"), 304: _success("The browser has it")},
    (400, 403, 404, 500, 503),
)
_FORM: Final = _operation(
    "The login form",
    {
        200: _success("The form", _STRING, "text/html"),
        302: _success(
            "The client is logged in: to `next`. Or to JupyterHub, if users log in there"
        ),
    },
    security=[],
)
_LOGOUT: Final = _operation(
    "Delete the cookies of this browser",
    {
        200: _success("A page", _STRING, "text/html"),
        302: _success("To JupyterHub, for its users"),
    },
    security=[],
)


def _description_operation(summary: str, kind: str = _JSON) -> Schema:
    schema: Schema = {"type": "object"} if kind == _JSON else {}
    return _operation(summary, {200: _success("The description", schema, kind)})


# Path: method: operation.
_PATHS: Final[dict[str, dict[str, Schema]]] = {
    "/api": {"get": _VERSION, "head": _VERSION},
    "/healthz": {"get": _HEALTH, "head": _HEALTH},
    "/readyz": {"get": _READY, "head": _READY},
    "/metrics": {"get": _METRICS, "head": _METRICS},
    "/kbridge.js": {"get": _MODULE, "head": _MODULE},
    "/login": {
        "get": _FORM,
        "head": _FORM,
        "post": _operation(
            "Log in with the token; sets the cookie",
            {302: _success("To `next`")},
            (401, 403, 413, 503),
            body={
                "required": True,
                "content": _content(ref("Login"), "application/x-www-form-urlencoded"),
            },
            security=[],
        ),
    },
    "/logout": {"get": _LOGOUT, "post": _LOGOUT},
    "/oauth_callback": {
        "get": _operation(
            "The end of a login at JupyterHub; sets the cookie",
            {302: _success("To the page that the user wanted")},
            (403, 404, 503),
            parameters=[
                _argument("code", {"type": "string"}, "The code of JupyterHub"),
                _argument("state", {"type": "string"}, "The text that begins the login"),
            ],
            security=[],
        )
    },
    "/api/status": {
        "get": _operation(
            "State of the server",
            {200: _success("The state", ref("Status"))},
            (400, 403, 503),
            parameters=[
                _argument("statistics", {"type": "boolean"}, "True: the counters of kernels")
            ],
        )
    },
    "/api/live": {
        "get": _operation(
            "Samples of all kernels once per second, until the client goes",
            {200: _success("Server-sent events with JSON", _STRING, "text/event-stream")},
            (403, 404, 503),
        )
    },
    "/api/me": {
        "get": _operation(
            "The identity and the permissions of the client",
            {200: _success("They are those of the token", ref("Me"))},
            (400, 403, 503),
            parameters=[
                {
                    "name": "permissions",
                    "in": "query",
                    "description": "The permissions in question, as JSON: {RESOURCE: [ACTION]}",
                    "content": _content(PERMISSIONS),
                }
            ],
        )
    },
    "/api/shutdown": {
        "post": _operation(
            "End the server, and its kernels unless they are kept",
            {200: _success("The server shuts down", ref("Shutdown"))},
            (403, 413, 501, 503),
        )
    },
    "/api/restart": {
        "post": _operation(
            "Restart the server, not its kernels",
            {200: _success("The server restarts", ref("Restarting"))},
            (400, 403, 409, 413, 501, 503),
            body=_body("RestartRequest"),
        )
    },
    "/api/openapi.json": {"get": _description_operation("This description")},
    "/api/spec.yaml": {"get": _description_operation("Swagger 2.0", "text/x-yaml")},
    "/api/swagger.yaml": {"get": _description_operation("Swagger 2.0", "text/x-yaml")},
    "/api/swagger.json": {"get": _description_operation("Swagger 2.0")},
    "/api/kernelspecs": {
        "get": _operation(
            "All kernelspecs, and the name of the default",
            {200: _success("Kernelspecs by name", ref("Kernelspecs"))},
        )
    },
    "/api/kernelspecs/{name}": {
        "get": _operation(
            "A kernelspec",
            {200: _success("The kernelspec", ref("Kernelspec"))},
            (400, 403, 404, 500, 503),
        )
    },
    "/kernelspecs/{name}/{path}": {"get": _FILE, "head": _FILE},
    "/api/kernels": {
        "get": _operation(
            "The running kernels", {200: _success("A list of kernels", _list("Kernel"))}
        ),
        "post": _operation(
            "Start a kernel",
            {201: _success("The kernel", ref("Kernel"))},
            _START,
            body=_body("NewKernel"),
        ),
    },
    "/api/kernels/{kernel_id}": {
        "get": _operation("A kernel", {200: _success("The kernel", ref("Kernel"))}, _READ),
        "delete": _operation(
            "Shut a kernel down", {204: _success("The kernel has ended")}, _CHANGE
        ),
    },
    "/api/kernels/{kernel_id}/interrupt": {
        "post": _operation("Interrupt a kernel", {204: _success("Done")}, (*_CHANGE, 413))
    },
    "/api/kernels/{kernel_id}/restart": {
        "post": _operation(
            "Restart a kernel",
            {200: _success("The kernel, whose new process runs", ref("Kernel"))},
            (*_CHANGE, 413),
        )
    },
    "/api/kernels/{kernel_id}/channels": {
        "get": _operation(
            "Upgrade to the websocket of a kernel",
            {101: _success("The protocol changes to websocket")},
            _READ,
            parameters=[
                _argument("session_id", _STRING, "The session, which continues where it was"),
                _argument("since", _STRING, "The last message that the client has received"),
                _argument("parents", _STRING, "The requests whose messages the client wants"),
            ],
        )
    },
    "/api/kernels/{kernel_id}/executions": {
        "get": _operation(
            "The executions of a kernel, newest last",
            {200: _success("A list of executions", _list("Execution"))},
            _READ,
            parameters=[
                {**_argument("state", _STATES, "Only these states"), "explode": False},
                _argument("session_id", _STRING, "Only those of this session"),
                _argument("cell_id", _STRING, "Only those of this cell"),
                _argument(
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": 999_999_999},
                    "Only so many, the newest",
                ),
            ],
        )
    },
    "/api/kernels/{kernel_id}/executions/{msg_id}": {
        "get": _operation("An execution", {200: _success("It", ref("Execution"))}, _READ),
        "delete": _operation(
            "Forget the output of an execution", {204: _success("Done")}, (*_READ, 409)
        ),
    },
    "/api/sessions": {
        "get": _operation("The sessions", {200: _success("A list of sessions", _list("Session"))}),
        "post": _operation(
            "Create a session, or return the one of the same path",
            {201: _success("The session", ref("Session"))},
            _START,
            body={**_body("NewSession"), "required": True},
        ),
    },
    "/api/sessions/{session_id}": {
        "get": _operation("A session", {200: _success("The session", ref("Session"))}, _READ),
        "patch": _operation(
            "Rename a session, or give it another kernel",
            {200: _success("The session", ref("Session"))},
            _START,
            body=_body("SessionChange"),
        ),
        "delete": _operation("Delete a session and its kernel", {204: _success("Done")}, _CHANGE),
    },
}


def describe(base_url: str, cookie_name: str = "kbridge") -> dict[str, Any]:
    """Return the description of a server.

    Parameters
    ----------
    base_url : str
        The path in front of every route, with a slash at both ends.
    cookie_name : str
        The name of the login cookie.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "kbridge", "description": _ABOUT, "version": __version__},
        "servers": [{"url": base_url.rstrip("/") or "/"}],
        "security": _TOKENS,
        "paths": {path: _path(path, operations) for path, operations in _PATHS.items()},
        "components": {
            "schemas": SCHEMAS,
            "responses": {str(status): _error(status) for status in _ERRORS},
            "securitySchemes": _security_schemes(cookie_name),
        },
    }


def _path(path: str, operations: dict[str, Schema]) -> Schema:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if not names:
        return dict(operations)
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in names
    ]
    return {"parameters": parameters, **operations}


def _error(status: int) -> Schema:
    found: Schema = {
        "description": f"{responses[status]}. {_ERRORS[status]}",
        "content": _content(ref("Error")),
    }
    return {**found, "headers": _RETRY} if status == 503 else found


def _security_schemes(cookie_name: str) -> Schema:
    def key(place: str, name: str, description: str) -> Schema:
        return {"type": "apiKey", "in": place, "name": name, "description": description}

    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "`Bearer TOKEN`"},
        "token": key("header", "Authorization", "`token TOKEN`"),
        "query": key("query", "token", "The token in the URL"),
        "cookie": key("cookie", cookie_name, "The cookie that `/login` sets"),
        "metricsBearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "`Bearer METRICS_TOKEN`: reads only `/metrics`",
        },
        "metricsQuery": key("query", "token", "The `metrics_token` in the URL"),
    }
