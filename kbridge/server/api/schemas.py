"""The JSON schemas of the REST API: what clients send, and what they receive.

Objects may get more fields in later versions, so clients ignore fields that they do not know.
"""

from __future__ import annotations

from typing import Any, Final

from kbridge.connection.executions import STATES

__all__ = ["PERMISSIONS", "SCHEMAS", "Schema", "ref"]

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """Return a reference to a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(fields: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in fields if name not in optional]
    found: Schema = {"type": "object", "properties": fields}
    return {**found, "required": required} if required else found


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _count(description: str = "") -> Schema:
    found: Schema = {"type": "integer", "minimum": 0}
    return {**found, "description": description} if description else found


_TIME: Final = _text(
    "In UTC, with microseconds",
    format="date-time",
    examples=["2026-01-31T12:00:00.000000Z"],
)
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_NO_NULS: Final = r"^[^\u0000]*$"
_NAME: Final = _text(maxLength=16_384, pattern=_NO_NULS)
_NUMBER_OF_MESSAGE: Final[Schema] = {
    "type": ["integer", "null"],
    "description": "As the argument `since` of the websocket takes it",
}
_KERNEL_STATES: Final = ("starting", "idle", "busy", "restarting", "dead", "unknown")
_KERNEL_OF_SESSION: Final[Schema] = {
    "type": ["object", "null"],
    "properties": {
        "id": {
            "type": ["string", "null"],
            "description": "A running kernel; takes precedence over `name`",
        },
        "name": {"type": ["string", "null"], "description": "The kernelspec of a new kernel"},
    },
}
_SESSION_FIELDS: Final[dict[str, Schema]] = {
    "path": {**_NAME, "description": "The path of the document"},
    "type": {**_NAME, "description": "`notebook`, `console`, `file` or another word"},
    "name": {**_NAME, "type": ["string", "null"]},
    "kernel": _KERNEL_OF_SESSION,
}
PERMISSIONS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}},
}
"""Actions by resource."""

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(
        {
            "reason": _text("The name of the status"),
            "message": _text("The problem, and often its solution"),
        }
    ),
    "Version": _object({"version": _text("The version of kbridge")}),
    "Status": _object(
        {
            "started": _TIME,
            "last_activity": _TIME,
            "connections": _count("Open websockets"),
            "kernels": _count("Running kernels"),
            "hubs": {
                "type": "array",
                "description": "With `statistics`: the counters of each kernel",
                "items": {"type": "object"},
            },
            "journals": {
                "type": "object",
                "description": "With `statistics`: the counters of the journals on disk",
            },
        },
        optional=("hubs", "journals"),
    ),
    "Me": _object(
        {
            "identity": _object({"username": _text(), "name": _text(), "display_name": _text()}),
            "permissions": PERMISSIONS,
        }
    ),
    "Shutdown": _object({"message": _text()}),
    "RestartRequest": _object(
        {"force": {**_BOOLEAN, "description": "Restart even if something is lost"}},
        optional=("force",),
    ),
    "Restarting": _object(
        {"message": _text(), "version": _text("The version that will be started")}
    ),
    "Health": _object({"status": _text()}),
    "Readiness": _object(
        {
            "ready": _BOOLEAN,
            "checks": {
                "type": "object",
                "description": "By name: `ok`, or the problem",
                "additionalProperties": {"type": "string"},
            },
        }
    ),
    "Kernelspec": _object(
        {
            "name": _text(),
            "spec": {"type": "object", "description": "The content of its kernel.json"},
            "resources": {
                "type": "object",
                "description": "The URLs of its files, such as logos",
                "additionalProperties": {"type": "string"},
            },
        }
    ),
    "Kernelspecs": _object(
        {
            "default": _text("The name of the default kernelspec"),
            "kernelspecs": {"type": "object", "additionalProperties": ref("Kernelspec")},
        }
    ),
    "NewKernel": _object(
        {
            "name": {"type": ["string", "null"], "description": "The kernelspec"},
            "path": {
                "type": ["string", "null"],
                "description": "The directory in which the kernel starts, below `root_dir`",
            },
            "env": {
                "type": ["object", "null"],
                "description": "Environment variables: `KERNEL_*`, and those of `allowed_envs`",
                "propertyNames": {"pattern": r"^[^=\u0000]+$"},
                "additionalProperties": {"type": "string", "pattern": _NO_NULS},
            },
        },
        optional=("name", "path", "env"),
    ),
    "Kernel": _object(
        {
            "id": _text(),
            "name": _text("The kernelspec"),
            "last_activity": _TIME,
            "execution_state": _text(enum=list(_KERNEL_STATES)),
            "connections": _count("Open websockets"),
            "user": _text("The user who started it, if the server knows users"),
            "reason": _text("Why it waits in a queue, or why it is dead"),
        },
        optional=("user", "reason"),
    ),
    "Execution": _object(
        {
            "id": _text("The `msg_id` of the request"),
            "session_id": _text("The session that sent the request"),
            "cell_id": _or_null(_text("The cell, if the frontend names it")),
            "state": _text(enum=list(STATES)),
            "code_bytes": _count(),
            "submitted": _TIME,
            "started": _or_null(_TIME),
            "ended": _or_null(_TIME),
            "execution_count": {"type": ["integer", "null"]},
            "first_seq": _NUMBER_OF_MESSAGE,
            "last_seq": _NUMBER_OF_MESSAGE,
            "messages": _count(),
            "lines": _count("Lines of stream messages"),
            "output_bytes": _count(),
            "displays": {
                **_BOOLEAN,
                "description": "True if later messages may change a display",
            },
            "connected": {
                **_BOOLEAN,
                "description": "True if a websocket of the session is open",
            },
        }
    ),
    "NewSession": _object(_SESSION_FIELDS, optional=("name", "kernel")),
    "SessionChange": _object(_SESSION_FIELDS, optional=tuple(_SESSION_FIELDS)),
    "Session": _object(
        {
            "id": _text(),
            "path": _text(),
            "name": _or_null(_text()),
            "type": _text(),
            "kernel": ref("Kernel"),
            "notebook": {"type": "object", "description": "For old clients"},
        },
        optional=("notebook",),
    ),
    "Login": _object(
        {"password": _text("The token"), "next": _text("A path below `base_url`")},
        optional=("next",),
    ),
}
