"""The OpenAPI document: valid, whole, and honest about keys and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate

from cluster.ledger import Ledger
from cluster.risk import OrderRequest
from conf.settings import RedisSettings, Secrets, Settings
from serve_apps.api import build_api
from serve_apps.problem import MEDIA_TYPE
from tests.servers import redis_secrets

OPEN_PATHS = {"/healthz", "/readyz"}
VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build(tmp_path_factory.mktemp("desk")).openapi()


def build(folder: Path, secrets: Secrets | None = None) -> FastAPI:
    """The application; the ledger it names is never asked."""
    settings = Settings(state_dir=folder, redis=RedisSettings(host="127.0.0.1", port=1))
    return build_api(settings, secrets or redis_secrets(), Ledger.connect(settings, redis_secrets()))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            assert verb in VERBS, verb
            yield path, verb, operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_every_schema_referred_to_is_there_and_valid(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {name.removeprefix("#/components/schemas/") for name in references(document)} <= set(schemas)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_operation_has_a_name_of_its_own_words_and_a_room(document: dict[str, Any]) -> None:
    rooms = {tag["name"] for tag in document["tags"]}
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for path, verb, operation in operations(document):
        assert operation["description"], (verb, path)
        assert set(operation["tags"]) <= rooms
        assert operation["tags"], (verb, path)


def test_every_v1_operation_asks_for_a_key_with_a_scope(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, verb, operation in operations(document):
        if path in OPEN_PATHS:
            assert "security" not in operation
        else:
            assert path.startswith("/v1/")
            ((name, scopes),) = [pair for item in operation["security"] for pair in item.items()]
            assert name == "ApiKey"
            assert scopes, (verb, path)


def test_every_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for path, verb, operation in operations(document):
        statuses = operation["responses"]
        for status, response in statuses.items():
            if int(status) >= 400:
                assert list(response["content"]) == [MEDIA_TYPE], (verb, path, status)
        if path not in OPEN_PATHS:
            assert {"401", "403", "422", "503"} <= set(statuses), (verb, path)


def test_every_answer_has_a_schema(document: dict[str, Any]) -> None:
    for path, verb, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) < 300 and status != "204":
                ((_, content),) = response["content"].items()
                assert content["schema"], (verb, path)


def test_the_routes_of_orders_are_part_of_it(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert set(paths["/v1/orders"]) == {"get", "post"}
    assert set(paths["/v1/orders/{client_order_id}"]) == {"get", "delete", "patch"}
    assert set(paths["/v1/orders/check"]) == {"post"}
    for path in ("/v1/orders", "/v1/orders/check"):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": "#/components/schemas/OrderRequest"}
    request = document["components"]["schemas"]["OrderRequest"]
    assert set(request["properties"]) == {field.name for field in msgspec.structs.fields(OrderRequest)}
    assert request["additionalProperties"] is False


def test_the_examples_keep_their_own_schemas(document: dict[str, Any]) -> None:
    checked = 0
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            examples = [item["value"] for item in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            schema = content["schema"] | {"components": document["components"]}
            for example in examples:
                jsonschema.validate(example, schema)
                checked += 1
    assert checked >= 3


def test_patterns_are_of_the_dialect_every_client_knows(document: dict[str, Any]) -> None:
    assert r"\\Z" not in json.dumps(document)


def test_the_application_is_not_built_without_a_pepper(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="api_key_pepper"):
        build(tmp_path, Secrets())
