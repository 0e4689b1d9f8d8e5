"""Who asks: what a key or a token lets its holder do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from rag.errors import Forbidden, InputError
from rag.filters import And, Filter, check_metadata, parse
from rag.types import Scalar

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `collections` None are all; `tenant` is a `where` that holds for all it sees.

    `id` is that of its key, "oidc:" and the subject of its token, or "anonymous" where no key is
    asked for.
    """

    id: str = "anonymous"
    scopes: frozenset[Scope] = frozenset(SCOPES)
    collections: frozenset[str] | None = None
    tenant: Mapping[str, Any] = field(default_factory=dict)

    def require(self, scope: Scope, collection: str | None = None) -> None:
        """Raise Forbidden unless it may do this, to this collection. "admin" may all."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"this key has no scope {scope!r}", "use a key that has it")
        if collection is not None and not self.sees(collection):
            raise Forbidden(
                f"this key is not for collection {collection!r}", "use a key that is, or another"
            )

    def sees(self, collection: str) -> bool:
        """Whether the collection is one of its own."""
        return self.collections is None or collection in self.collections

    def within(self, where: Filter | None) -> Filter | None:
        """The filter with that of its tenant and-ed to it: it can be narrowed, never widened."""
        own = parse(self.tenant)
        parts = tuple(part for part in (own, where) if part is not None)
        return And(parts) if len(parts) > 1 else next(iter(parts), None)

    @property
    def tenant_key(self) -> str:
        """The tenant as text: callers with the same see the same. "" for one that sees all."""
        return json.dumps(self.tenant, sort_keys=True) if self.tenant else ""

    def stamp(self) -> dict[str, Scalar]:
        """The metadata that puts a document into its tenant.

        Raises Forbidden where the tenant is no list of plain values, so that nothing could be.
        """
        values = {}
        for name, condition in self.tenant.items():
            alone = isinstance(condition, Mapping) and list(condition) == ["$eq"]
            values[name] = condition["$eq"] if alone else condition
        try:
            check_metadata(values)
        except InputError as error:
            raise Forbidden(
                "this key's filter does not say what its documents are",
                'write with a key whose filter is like {"tenant": "acme"}',
            ) from error
        return values


ANYONE = Caller()
"""Where no key is asked for: on loopback, or where that was said explicitly."""
