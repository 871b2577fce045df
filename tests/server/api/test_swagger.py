import json

from kbridge.server.api import openapi, swagger


def test_it_describes_the_routes_of_the_api() -> None:
    told = swagger.describe("/b/")
    assert (told["swagger"], told["basePath"]) == ("2.0", "/b/")
    newer = openapi.describe("/b/")["paths"]
    assert set(told["paths"]) == {p for p in newer if p.startswith(("/api", "/kernelspecs/"))}
    for path, item in told["paths"].items():
        assert set(item) == set(newer[path]) - {"head"}, path


def test_it_has_nothing_that_swagger_does_not_know() -> None:
    text = json.dumps(swagger.describe("/"))
    for newer in ("requestBody", '"content"', "$ref", "components", "null", "minLength"):
        assert newer not in text


def test_bodies_and_arguments_are_described() -> None:
    paths = swagger.describe("/")["paths"]
    [body] = paths["/api/kernels"]["post"]["parameters"]
    assert body["in"] == "body"
    assert body["schema"]["properties"] == {
        "name": {"type": "string"},
        "path": {"type": "string"},
        "env": {"type": "object"},
    }
    executions = paths["/api/kernels/{kernel_id}/executions"]
    assert [p["name"] for p in executions["parameters"]] == ["kernel_id"]
    found = {p["name"]: (p["in"], p["type"]) for p in executions["get"]["parameters"]}
    assert found["state"] == ("query", "string")
    assert found["limit"] == ("query", "integer")


def test_an_operation_has_its_success_and_errors() -> None:
    operation = swagger.describe("/")["paths"]["/api/kernels"]["post"]
    assert set(operation["responses"]) == {"201", "default"}
