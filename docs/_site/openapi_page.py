"""Shows the description of the REST API as Markdown, for the documentation site."""

from __future__ import annotations

from typing import Any

from kbridge.server.api.openapi import describe

__all__ = ["page"]

METHODS = ("get", "head", "post", "patch", "put", "delete")


def page() -> str:
    """Return sections about access, all operations and all schemas."""
    document = describe("/")
    parts = ["\n## Access\n", "Each of these gives access, unless an operation says otherwise:\n"]
    components = document["components"]
    for name, scheme in components["securitySchemes"].items():
        place = f"{scheme['in']} `{scheme['name']}`" if "in" in scheme else "header `Authorization`"
        parts.append(f"- `{name}`: {place}. {scheme['description']}")
    parts.append("\n## Operations\n")
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                shared = item.get("parameters", [])
                parts += _operation(f"{method.upper()} {path}", item[method], shared, components)
    parts.append("\n## Schemas\n")
    for name, schema in components["schemas"].items():
        parts += [f"\n### Schema {name}\n", *_fields(schema)]
    return "\n".join(parts) + "\n"


def _operation(
    title: str, operation: dict[str, Any], shared: list[Any], components: dict[str, Any]
) -> list[str]:
    lines = [f"\n### {title}\n", f"{operation['summary']}.", ""]
    if operation.get("security") == []:
        lines += ["Needs no token.", ""]
    elif "security" in operation:
        names = ", ".join(f"`{name}`" for scheme in operation["security"] for name in scheme)
        lines += [f"Access: {names}.", ""]
    parameters = [*shared, *operation.get("parameters", ())]
    if parameters:
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        for parameter in parameters:
            schema = parameter.get("schema") or parameter["content"]["application/json"]["schema"]
            cells = (
                f"`{parameter['name']}`",
                parameter["in"],
                _type(schema),
                parameter["description"],
            )
            lines.append(_row(*cells))
        lines.append("")
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body, `{kind}`: {_type(body['schema'])}.", ""]
    lines += ["| status | reply | content |", "|---|---|---|"]
    for status, reply in operation["responses"].items():
        if "$ref" in reply:
            reply = components["responses"][reply["$ref"].rpartition("/")[2]]  # noqa: PLW2901
        content = ", ".join(
            f"`{kind}` {_type(value['schema'])}" for kind, value in reply.get("content", {}).items()
        )
        headers = "".join(f"; header `{name}`" for name in reply.get("headers", ()))
        lines.append(_row(status, reply["description"] + headers, content))
    return [*lines, ""]


def _fields(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", ())
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        about = field.get("description", "")
        optional = "" if name in required else "Optional. "
        lines.append(_row(f"`{name}`", _type(field), f"{optional}{about}"))
    return [*lines, ""]


def _type(schema: dict[str, Any]) -> str:
    """Return a short text for a schema, with a link if it has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#schema-{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "any")
    text = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if text == "array":
        return f"array of {_type(schema['items'])}"
    return f"{text} ({schema['format']})" if "format" in schema else text


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
