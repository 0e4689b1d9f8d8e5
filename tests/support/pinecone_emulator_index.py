"""The data plane of one Pinecone index: exact search, real limits, writes that are seen late.

What is refused and how it is put comes from Pinecone's documentation, its OpenAPI descriptions
(2026-04 and 2026-07) and the answers of the service as its users report them.
"""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pinecone_emulator_filters import Refused, compiled

MOST_RECORDS = 1_000  # of an upsert, a fetch, a delete by ids
MOST_METADATA = 40_960  # bytes a record
MOST_RESULT = 4_000_000  # bytes of the answer to a query
MOST_K = 10_000
LONGEST_ID = 512
PAGE = 100

Body: TypeAlias = dict[str, Any]
Answer: TypeAlias = tuple[Body, dict[str, str]]


class NotFound(Exception):
    """What Pinecone answers with status 404."""


class Conflict(Exception):
    """What Pinecone answers with status 409."""


@dataclass
class Lag:
    """A write is not seen by the next `reads` read requests, nor for `seconds`."""

    reads: int = 0
    seconds: float = 0.0


@dataclass
class Rules:
    """What a test may change about all indexes. Search and storage may lag differently."""

    search: Lag = field(default_factory=Lag)
    storage: Lag = field(default_factory=Lag)
    lsn_headers: bool = True
    ne_matches_missing: bool = True
    page: int = PAGE


@dataclass(frozen=True)
class Record:
    values: NDArray[np.float32]
    metadata: Body

    def to_json(self, record_id: str) -> Body:
        return {"id": record_id, "values": self.values.tolist(), "metadata": self.metadata}


class View:
    """A namespace as one kind of request sees it."""

    def __init__(self, lag: Lag) -> None:
        self.lsn = 0
        self._lag = lag
        self._records: dict[str, Record] = {}
        self._pending: deque[tuple[int, float, int, dict[str, Record | None]]] = deque()
        self._reads = 0
        self._matrix: tuple[list[str], NDArray[np.float64]] | None = None

    def write(self, lsn: int, changes: dict[str, Record | None]) -> None:
        due = time.monotonic() + self._lag.seconds
        self._pending.append((self._reads + self._lag.reads, due, lsn, changes))

    def read(self) -> dict[str, Record]:
        """The records; counts as a read request."""
        self._reads += 1
        while self._pending and self._is_due(*self._pending[0][:2]):
            _, _, self.lsn, changes = self._pending.popleft()
            for record_id, record in changes.items():
                if record is None:
                    self._records.pop(record_id, None)
                else:
                    self._records[record_id] = record
            self._matrix = None
        return self._records

    def matrix(self) -> tuple[list[str], NDArray[np.float64]]:
        """Ids and vectors of what was read last."""
        if self._matrix is None:
            rows = [record.values for record in self._records.values()]
            self._matrix = list(self._records), np.array(rows, np.float64)
        return self._matrix

    def _is_due(self, reads: int, at: float) -> bool:
        return self._reads > reads and time.monotonic() >= at


class Namespace:
    def __init__(self, rules: Rules) -> None:
        self.records: dict[str, Record] = {}
        self.lsn = 0
        self.search = View(rules.search)
        self.storage = View(rules.storage)

    def write(self, changes: dict[str, Record | None]) -> None:
        self.lsn += 1
        for record_id, record in changes.items():
            if record is None:
                self.records.pop(record_id, None)
            else:
                self.records[record_id] = record
        self.search.write(self.lsn, changes)
        self.storage.write(self.lsn, changes)


class Index:
    """One index. Its methods are the operations of the data plane, body in and body out."""

    def __init__(self, dimension: int, metric: str, rules: Rules) -> None:
        self.dimension = dimension
        self.metric = metric
        self._rules = rules
        self._namespaces: dict[str, Namespace] = {}

    # --- writes

    def upsert(self, body: Body) -> Answer:
        vectors = body["vectors"]
        if not 1 <= len(vectors) <= MOST_RECORDS:
            raise Refused(f"upsert takes 1 to {MOST_RECORDS} vectors, not {len(vectors)}")
        changes = {check_id(vector["id"]): self._record(vector) for vector in vectors}
        namespace = self._namespaces.setdefault(_name(body), Namespace(self._rules))
        namespace.write(dict(changes))
        return {"upsertedCount": len(vectors)}, self._committed(namespace)

    def delete(self, body: Body) -> Answer:
        namespace = self._existing(_name(body))
        if "filter" in body:
            if not body["filter"]:
                raise Refused("Delete with empty metadata filter is not allowed")
            test = self._test(body["filter"])
            ids = [i for i, record in namespace.records.items() if test(record.metadata)]
        elif body.get("deleteAll"):
            ids = list(namespace.records)
        else:
            ids = [check_id(record_id) for record_id in body.get("ids", [])]
            if not 1 <= len(ids) <= MOST_RECORDS:
                raise Refused(f"delete takes 1 to {MOST_RECORDS} ids, not {len(ids)}")
        namespace.write(dict.fromkeys(ids))
        return {}, self._committed(namespace)

    def update(self, body: Body) -> Answer:
        namespace = self._namespaces.get(_name(body)) or Namespace(self._rules)
        values, metadata = body.get("values"), body.get("setMetadata", {})
        _check_metadata("update", metadata)
        if "filter" in body:
            if not body["filter"]:
                raise Refused("Update with empty metadata filter is not allowed")
            found = self._matching(namespace.search, body["filter"])
            if not body.get("dryRun"):
                there = {i: record for i, record in namespace.records.items() if i in found}
                namespace.write({i: self._changed(there[i], metadata) for i in there})
            return {"matchedRecords": len(found)}, {}
        record = namespace.records.get(check_id(body["id"]))
        if record is not None:
            changed = self._changed(record, metadata)
            if values is not None:
                changed = Record(self._values(body["id"], values), changed.metadata)
            namespace.write({body["id"]: changed})
        return {}, self._committed(namespace)

    # --- reads

    def query(self, body: Body) -> Answer:
        namespace = self._namespaces.get(_name(body)) or Namespace(self._rules)
        k = body["topK"]
        if not 1 <= k <= MOST_K:
            raise Refused(f"top_k must be between 1 and {MOST_K}, got {k}")
        records = namespace.search.read()
        ids, rows = namespace.search.matrix()
        vector = self._query_vector(body, records)
        if body.get("filter"):
            test = self._test(body["filter"])
            kept = [n for n, i in enumerate(ids) if test(records[i].metadata)]
            ids, rows = [ids[n] for n in kept], rows[kept]
        scores = self._scores(vector, rows)
        best = np.argsort(scores if self.metric == "euclidean" else -scores, kind="stable")[:k]
        matches = []
        for n in best.tolist():
            match: Body = {"id": ids[n], "score": float(np.float32(scores[n])), "values": []}
            if body.get("includeValues"):
                match["values"] = records[ids[n]].values.tolist()
            if body.get("includeMetadata"):
                match["metadata"] = records[ids[n]].metadata
            matches.append(match)
        if (
            len(matches) >= 3
        ):  # the service does not always sort them: python-sdk's own tests say so
            matches.reverse()
        answer = {"matches": matches, "namespace": _name(body), "usage": {"readUnits": 1}}
        if (size := len(json.dumps(answer))) > MOST_RESULT:
            raise Refused(f"the result of {size} bytes exceeds the maximum of {MOST_RESULT}")
        shown = {"x-pinecone-max-indexed-lsn": str(namespace.search.lsn)}
        return answer, shown if self._rules.lsn_headers else {}

    def fetch(self, namespace: str, ids: list[str]) -> Answer:
        if not 1 <= len(ids) <= MOST_RECORDS:
            raise Refused(f"fetch takes 1 to {MOST_RECORDS} ids, not {len(ids)}")
        records = self._stored(namespace)
        found = {i: records[i].to_json(i) for i in map(check_id, ids) if i in records}
        return {"vectors": found, "namespace": namespace, "usage": {"readUnits": 1}}, {}

    def list_ids(self, namespace: str, prefix: str, limit: int, after: str) -> Answer:
        if not 1 <= limit <= PAGE:
            raise Refused(f"limit must be between 1 and {PAGE}, got {limit}")
        ids = [i for i in sorted(self._stored(namespace)) if i.startswith(prefix)]
        # A page may be shorter than asked: only its token tells whether there is more.
        page, pagination = _page(ids, min(limit, self._rules.page), after)
        answer = {"vectors": [{"id": i} for i in page], "namespace": namespace, **pagination}
        return {**answer, "usage": {"readUnits": 1}}, {}

    def fetch_by_metadata(self, body: Body) -> Answer:
        if not body["filter"]:
            raise Refused("Empty filter provided for fetch by metadata request")
        limit = body.get("limit", PAGE)
        if not 1 <= limit <= MOST_K:
            raise Refused(f"limit must be between 1 and {MOST_K}, got {limit}")
        namespace = self._namespaces.get(_name(body)) or Namespace(self._rules)
        found = self._matching(namespace.search, body["filter"])
        limit = min(limit, self._rules.page)
        page, pagination = _page(sorted(found), limit, body.get("paginationToken", ""))
        vectors = {i: found[i].to_json(i) for i in page}
        return {"vectors": vectors, "namespace": _name(body), **pagination}, {}

    def describe_index_stats(self, body: Body) -> Answer:
        if body.get("filter"):
            raise Refused("Serverless indexes do not support describing stats with a filter")
        counts = {n or "__default__": len(s.search.read()) for n, s in self._namespaces.items()}
        return {
            "namespaces": {name: {"vectorCount": count} for name, count in counts.items()},
            "dimension": self.dimension,
            "indexFullness": 0,
            "totalVectorCount": sum(counts.values()),
            "metric": self.metric,
            "vectorType": "dense",
        }, {}

    # --- namespaces

    def create_namespace(self, body: Body) -> Answer:
        if _name({"namespace": body["name"]}) in self._namespaces:
            raise Conflict("namespace already exists")
        self._namespaces[body["name"]] = Namespace(self._rules)
        return self.describe_namespace(body["name"])

    def describe_namespace(self, name: str) -> Answer:
        count = len(self._existing(name).search.read())
        return {"name": name, "record_count": count}, {}

    def delete_namespace(self, name: str) -> Answer:
        self._existing(name)
        del self._namespaces[_name({"namespace": name})]
        return {}, {}

    def list_namespaces(self, prefix: str, limit: int, after: str) -> Answer:
        names = sorted(name or "__default__" for name in self._namespaces)
        wanted = [name for name in names if name.startswith(prefix)]
        page, pagination = _page(wanted, limit, after)
        found = [self.describe_namespace(name)[0] for name in page]
        return {"namespaces": found, "total_count": len(wanted), **pagination}, {}

    # --- the rest

    def _existing(self, name: str) -> Namespace:
        try:
            return self._namespaces[_name({"namespace": name})]
        except KeyError:
            raise NotFound("Namespace not found") from None

    def _stored(self, namespace: str) -> dict[str, Record]:
        found = self._namespaces.get(_name({"namespace": namespace}))
        return found.storage.read() if found else {}

    def _test(self, where: Any) -> Any:
        return compiled(where, ne_matches_missing=self._rules.ne_matches_missing)

    def _matching(self, view: View, where: Any) -> dict[str, Record]:
        test = self._test(where)
        return {i: record for i, record in view.read().items() if test(record.metadata)}

    def _committed(self, namespace: Namespace) -> dict[str, str]:
        return {"x-pinecone-request-lsn": str(namespace.lsn)} if self._rules.lsn_headers else {}

    def _record(self, vector: Body) -> Record:
        metadata = vector.get("metadata", {})
        _check_metadata(vector["id"], metadata)
        numbers = (int, float)
        stored = {  # every number becomes a 64-bit float
            key: float(value)
            if isinstance(value, numbers) and not isinstance(value, bool)
            else value
            for key, value in metadata.items()
        }
        return Record(self._values(vector["id"], vector.get("values", [])), stored)

    def _values(self, record_id: str, values: Any) -> NDArray[np.float32]:
        self._check_dimension(values)
        found = np.array(values, np.float32)
        if not (np.abs(found) >= 1e-8).any():
            raise Refused(
                "Dense vectors must contain at least one non-zero value. "
                f"Vector ID '{record_id}' contains only zeros"
            )
        return found

    def _check_dimension(self, values: Any) -> None:
        if len(values) != self.dimension:
            raise Refused(
                f"Vector dimension {len(values)} does not match "
                f"the dimension of the index {self.dimension}"
            )
        if not all(isinstance(value, (int, float)) for value in values):
            raise Refused("Vector values must be numbers")

    def _query_vector(self, body: Body, records: dict[str, Record]) -> NDArray[np.float64]:
        if ("id" in body) == ("vector" in body):
            raise Refused("exactly one of 'ID' and 'vector' must be provided")
        if "id" in body:
            if body["id"] not in records:
                raise NotFound(f"no record {body['id']!r}")
            return records[body["id"]].values.astype(np.float64)
        self._check_dimension(body["vector"])
        return np.array(body["vector"], np.float32).astype(np.float64)

    def _scores(self, vector: NDArray[np.float64], rows: NDArray[np.float64]) -> Any:
        """As the service gives them: a euclidean score is the squared distance."""
        if not len(rows):
            return np.zeros(0)
        if self.metric == "euclidean":
            return ((rows - vector) ** 2).sum(1)
        if self.metric == "dotproduct":
            return rows @ vector
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
        return rows @ vector / np.where(lengths > 0, lengths, 1)

    @staticmethod
    def _changed(record: Record, metadata: Body) -> Record:
        return Record(record.values, {**record.metadata, **metadata})


def check_id(record_id: Any) -> str:
    if not isinstance(record_id, str) or not 1 <= len(record_id) <= LONGEST_ID:
        raise Refused(f"Vector ID must be 1 to {LONGEST_ID} characters")
    if not record_id.isascii() or "\x00" in record_id:
        raise Refused(f"Vector ID must be ASCII, but got {record_id!r}")
    return record_id


def _check_metadata(record_id: str, metadata: Any) -> None:
    for key, value in metadata.items():
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if key.startswith("$") or not (isinstance(value, (str, int, float)) or listed):
            raise Refused(
                "Metadata value must be a string, number, boolean or list of strings, "
                f"got {json.dumps(value)} for field {key!r} of {record_id!r}"
            )
    size = len(json.dumps(metadata, ensure_ascii=False).encode())
    if size > MOST_METADATA:
        raise Refused(
            f"Metadata size is {size} bytes, "
            f"which exceeds the limit of {MOST_METADATA} bytes per vector"
        )


def _name(body: Body) -> str:
    name: str = body.get("namespace", "")
    return "" if name == "__default__" else name


def _page(items: list[str], limit: int, token: str) -> tuple[list[str], Body]:
    """Up to `limit` of the sorted items after the one that the token names."""
    after = base64.b64decode(token).decode() if token else ""
    rest = [item for item in items if item > after]
    if len(rest) <= limit:
        return rest, {}
    following = base64.b64encode(rest[limit - 1].encode()).decode()
    return rest[:limit], {"pagination": {"next": following}}
