from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kbridge.server.api.schemas import PERMISSIONS, SCHEMAS

KERNEL = {
    "id": "a",
    "name": "python3",
    "last_activity": "2026-01-31T12:00:00.000000Z",
    "execution_state": "idle",
    "connections": 0,
}
SESSION = {"id": "s", "path": "a.ipynb", "name": None, "type": "notebook", "kernel": KERNEL}


def accepts(name: str, value: Any) -> bool:
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    return bool(Draft202012Validator(root).is_valid(value))


def test_they_are_valid() -> None:
    for schema in (*SCHEMAS.values(), PERMISSIONS):
        Draft202012Validator.check_schema(schema)


def test_required_fields_exist() -> None:
    for name, schema in SCHEMAS.items():
        assert set(schema.get("required", ())) <= set(schema["properties"]), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Kernel", KERNEL),
        ("Kernel", {**KERNEL, "a_later_field": 1}),
        ("Session", SESSION),
        ("NewKernel", {}),
        ("NewKernel", {"name": None, "env": {"KERNEL_A": ""}, "path": None}),
        ("NewSession", {"path": "a", "type": "console"}),
        ("SessionChange", {"kernel": {"id": "a"}}),
    ],
)
def test_values_that_they_accept(name: str, value: Any) -> None:
    assert accepts(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Kernel", {**KERNEL, "execution_state": "asleep"}),
        ("Kernel", {**KERNEL, "connections": -1}),
        ("Session", {**SESSION, "kernel": {}}),
        ("NewKernel", {"env": {"A=B": "c"}}),
        ("NewKernel", {"env": {"A": "a\0"}}),
        ("NewSession", {"path": "a"}),
        ("NewSession", {"path": "\0", "type": "console"}),
        ("Error", {"reason": "Not Found"}),
    ],
)
def test_values_that_they_refuse(name: str, value: Any) -> None:
    assert not accepts(name, value)
