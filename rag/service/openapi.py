"""The OpenAPI description: the filter language in full, and how a key is presented."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_NUMBER = {"type": "number", "minimum": -(2**53), "maximum": 2**53}
_SCALAR = {"anyOf": [{"type": "string"}, _NUMBER, {"type": "boolean"}]}
_ORDERED = {"anyOf": [{"type": "string"}, _NUMBER]}
_LIST = {"type": "array", "items": _SCALAR}
_FILTERS = {"type": "array", "items": {"$ref": "#/components/schemas/Filter"}, "minItems": 1}
_CONDITION = {"$ref": "#/components/schemas/Condition"}

_SCHEMAS: dict[str, Any] = {
    "Filter": {
        "type": "object",
        "description": "Fields and what they must be: a value, or operators. All must hold.",
        "properties": {
            "$and": _FILTERS,
            "$or": _FILTERS,
            "$not": {"$ref": "#/components/schemas/Filter"},
        },
        "propertyNames": {"pattern": r"^(\$and|\$or|\$not|[^$][\s\S]*)$"},
        "additionalProperties": {"anyOf": [_SCALAR, _CONDITION]},
        "examples": [{"lang": "en", "year": {"$gte": 2024}}],
    },
    "Condition": {
        "type": "object",
        "description": "Operators on one field. All must hold.",
        "properties": {
            "$eq": _SCALAR,
            "$ne": _SCALAR,
            "$gt": _ORDERED,
            "$gte": _ORDERED,
            "$lt": _ORDERED,
            "$lte": _ORDERED,
            "$in": _LIST,
            "$nin": _LIST,
            "$exists": {"type": "boolean"},
            "$not": {"anyOf": [_SCALAR, _CONDITION]},
        },
        "additionalProperties": False,
        "minProperties": 1,
    },
}


_SECURITY: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`rag keys create`), or a token of the identity provider.",
    },
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An API key.",
    },
}


def describe(api: FastAPI) -> None:
    """Add to the description of `api` the filters of `rag.service.schemas.Where`, and keys."""
    described = api.openapi

    def openapi() -> dict[str, Any]:
        description = described()
        description["components"]["schemas"] |= _SCHEMAS
        if not api.state.desk.guarded:  # then all are let in
            return description
        description["components"]["securitySchemes"] = _SECURITY
        for path in description["paths"].values():
            for operation in path.values():
                if "401" in operation["responses"]:
                    operation["security"] = [{name: []} for name in _SECURITY]
        return description

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to change it
