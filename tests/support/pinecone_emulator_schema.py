"""Requests and responses compared with Pinecone's own OpenAPI descriptions.

The descriptions are of 2026-04 and the SDK speaks 2026-07. The data plane is the same in both but
for what `DataPlane` says; of the control plane only the shape of errors is, so that is what
`ControlPlane` checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

DESCRIPTIONS = Path(__file__).parents[3] / "shared" / "data" / "pinecone-api"


class DataPlane:
    """The description of the data plane, as a check of what goes over the wire."""

    def __init__(self, folder: Path = DESCRIPTIONS) -> None:
        self._spec = _load(folder / "db_data_2026-04.oas.yaml")
        self._paths = [
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), operations)
            for path, operations in self._spec["paths"].items()
        ]

    def request(
        self, method: str, path: str, query: dict[str, list[str]], headers: Any, body: Any
    ) -> Iterator[str]:
        """What is wrong with the request."""
        operation = self._operation(method, path)
        if operation is None:
            yield f"{method} {path} is not in the description"
            return
        known = set()
        for parameter in operation.get("parameters", []):
            name, schema = parameter["name"], parameter["schema"]
            given = query.get(name) if parameter["in"] == "query" else None
            if parameter["in"] == "query":
                known.add(name)
            elif parameter["in"] == "header" and headers.get(name):
                given = [headers[name]]
            elif parameter["in"] == "path":
                continue
            if given is None:
                if parameter.get("required"):
                    yield f"{method} {path}: {parameter['in']} parameter {name} is missing"
                continue
            value: Any = given if schema["type"] == "array" else given[0]
            if schema["type"] == "integer":
                value = int(value) if value.isdigit() else value
            yield from self._errors(value, schema, f"{method} {path} {name}")
        yield from (f"{method} {path}: unknown parameter {n}" for n in query.keys() - known)
        content = operation.get("requestBody", {}).get("content", {})
        if content:
            schema = content["application/json"]["schema"]
            yield from self._errors(body, schema, f"{method} {path}")
            # The description leaves objects open, but a field that it does not name is a mistake.
            named = self._spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            unknown = body.keys() - named["properties"].keys()
            yield from (f"{method} {path}: unknown field {name}" for name in unknown)

    def response(self, method: str, path: str, status: int, body: Any) -> Iterator[str]:
        """What is wrong with the response. Since 2026-07 a 401 and a 429 are plain text."""
        operation = self._operation(method, path)
        if operation is None or status in (401, 429):
            return
        responses = operation["responses"]
        described = responses.get(str(status)) or responses.get(f"{status // 100}XX")
        if described is None:
            yield f"{method} {path}: status {status} is not in the description"
            return
        schema = described["content"]["application/json"]["schema"]
        yield from self._errors(body, schema, f"{method} {path} -> {status}")

    def _operation(self, method: str, path: str) -> Any:
        for pattern, operations in self._paths:
            if pattern.fullmatch(path):
                return operations.get(method.lower())
        return None

    def _errors(self, value: Any, schema: Any, where: str) -> Iterator[str]:
        validator = _Validator({**schema, "components": self._spec["components"]})
        for error in validator.iter_errors(value):
            yield f"{where} {error.json_path}: {error.message[:200]}"


class ControlPlane:
    """The shape of the control plane's errors."""

    def __init__(self, folder: Path = DESCRIPTIONS) -> None:
        spec = _load(folder / "db_control_2026-04.oas.yaml")
        self._validator = _Validator(spec["components"]["schemas"]["ErrorResponse"])

    def response(self, status: int, body: Any) -> Iterator[str]:
        """What is wrong with the response, if it is an error. A 401 and a 429 are plain text."""
        if status >= 400 and status not in (401, 429):
            yield from (f"-> {status}: {e.message}" for e in self._validator.iter_errors(body))


def _items(validator: Any, items: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """Long lists of numbers at once: a number at a time takes seconds for a thousand vectors."""
    numbers = items.get("type") == "number" and isinstance(instance, list)
    if numbers and all(type(item) in (int, float) for item in instance):
        return
    yield from _original_items(validator, items, instance, schema)


# Schemas of OpenAPI 3.0 are nearly those of JSON Schema's draft 4.
_original_items = jsonschema.Draft4Validator.VALIDATORS["items"]
_Validator = jsonschema.validators.extend(jsonschema.Draft4Validator, {"items": _items})


@cache
def _load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
