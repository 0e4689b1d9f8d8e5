"""The values that flow through the system: file -> Document -> Chunk, question -> Hit -> Answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]
    """float32, shape (n, dim); rows of unit length unless a collection is unnormalised."""

Scalar: TypeAlias = str | int | float | bool
Metadata: TypeAlias = Mapping[str, Scalar]
Metric: TypeAlias = Literal["cosine", "ip", "l2"]


@dataclass(frozen=True, slots=True)
class Page:
    """The text of one page. `number` counts from 1; None where the format has no pages."""

    text: str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One file as text. `id` comes from `source`; `version` from its bytes and chunk settings."""

    id: str
    source: str
    version: str
    title: str
    pages: tuple[Page, ...]
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of one page: what is embedded, found and quoted.

    `id` comes from document id, version and `position` (from 0); the chunk at position 0 is
    written last, so its presence says that this version of the document is whole.
    `ingested_at` is in seconds since the epoch, UTC.
    """

    id: str
    document_id: str
    version: str
    position: int
    text: str
    source: str
    title: str = ""
    page: int | None = None
    ingested_at: int = 0
    metadata: Metadata = field(default_factory=dict)

    def fields(self) -> dict[str, Scalar]:
        """What a filter can ask about: the metadata and the built-in fields."""
        built_in = {name: getattr(self, name) for name in BUILT_IN_FIELDS}
        return {**self.metadata, **{k: v for k, v in built_in.items() if v is not None}}


BUILT_IN_FIELDS = ("document_id", "version", "position", "source", "title", "page", "ingested_at")
"""Names that metadata keys may not take, because filters use them for the chunk's own fields."""


@dataclass(frozen=True, slots=True)
class Leg:
    """How one way of searching ("dense", "keyword", "rerank") saw a hit.

    `rank` counts from 1; `score` is its own; `weight` is its share in the score of the hit.
    """

    name: str
    rank: int
    score: float
    weight: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. `score`: higher is better, in every store and metric.

    `legs` tell where a score that was put together came from; a store leaves them empty.
    """

    chunk: Chunk
    score: float
    legs: tuple[Leg, ...] = ()

    def leg(self, name: str) -> Leg | None:
        """How the leg of that name saw this hit; None if it did not find it."""
        return next((leg for leg in self.legs if leg.name == name), None)


class DocumentKey(NamedTuple):
    """The place of a version of a document in a listing, which is in the order of these."""

    source: str
    version: str
    id: str


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """One version of a document as a store holds it; `complete` once position 0 is there."""

    id: str
    source: str
    title: str
    version: str
    chunks: int
    ingested_at: int
    complete: bool

    @property
    def key(self) -> DocumentKey:
        """Its place in a listing."""
        return DocumentKey(self.source, self.version, self.id)


@dataclass(frozen=True, slots=True)
class Facet:
    """A metadata field, as far as its values are of one kind.

    `values` are the most frequent ones, each with the number of documents that have it in some
    chunk, and `more` says that there are others. `least` and `greatest` are None but for numbers.
    """

    name: str
    kind: Literal["text", "number", "truth"]
    values: tuple[tuple[Scalar, int], ...]
    more: bool = False
    least: int | float | None = None
    greatest: int | float | None = None


@dataclass(frozen=True, slots=True)
class Facets:
    """The metadata that is really there, ordered by name and kind.

    `complete`: every chunk was looked at, and every field is named.
    """

    fields: tuple[Facet, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes vectors comparable; stamped on a collection and checked at every use.

    `revision` is a hash of the weights where they are local, otherwise what the server names.
    """

    model: str
    revision: str
    dim: int
    normalized: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection is created with, and never changes afterwards."""

    name: str
    dim: int
    metric: Metric = "cosine"
    embedder: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a live collection says of itself."""

    kind: str
    collection: str
    dim: int
    metric: Metric
    index: str
    embedder: Fingerprint | None
    count: int
    capabilities: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a kind of store says of itself once it is connected.

    `location` is a folder or an address, `version` that of the engine or server behind it.
    """

    location: str
    version: str
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of a conversation and what was answered."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """What one question asks of the generator; what is None is left to its settings."""

    max_tokens: int | None = None
    temperature: float | None = None

    def fields(self) -> dict[str, float]:
        """What is asked for, by the names that generators share."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a generator gets. `messages` are chat messages; `passages[n - 1]` is marked [n].

    `dropped` counts passages that did not fit the model's window; `vector` is that of the question,
    where it is known.
    """

    question: str
    passages: tuple[Hit, ...]
    messages: tuple[dict[str, str], ...] = ()
    dropped: int = 0
    sampling: Sampling = Sampling()
    vector: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the model counted; 0 where it does not say.

    `truncated`: the answer reached the limit of tokens, and stops in the middle.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a marker [n] of an answer leads: a hit of this very answer.

    `spans` are the [start, end) ranges of `text`, in characters, that the answer rests on.
    """

    marker: int
    chunk_id: str
    document_id: str
    source: str
    title: str
    page: int | None
    score: float
    text: str
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, marker: int, hit: Hit, spans: tuple[tuple[int, int], ...] = ()) -> Citation:
        """The citation of `hit` under `marker`."""
        chunk = hit.chunk
        return cls(
            marker=marker,
            chunk_id=chunk.id,
            document_id=chunk.document_id,
            source=chunk.source,
            title=chunk.title,
            page=chunk.page,
            score=round(hit.score, 6),
            text=chunk.text,
            spans=spans,
        )

    def to_json(self) -> dict[str, Any]:
        """The citation as every interface gives it. `span` is the first of its spans, or None."""
        return {**asdict(self), "span": self.spans[0] if self.spans else None}

    def quotes(self) -> list[str]:
        """The sentences of the passage that the answer rests on, white space collapsed."""
        return [" ".join(self.text[start:end].split()) for start, end in self.spans]


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of an answer, its [start, end) range there, and what supports it.

    `marker` names the citation whose text in `span` supports the sentence; both are None where no
    passage does: the sentence is unsupported. `score`, 0 to 1, is as in `rag.support`.
    """

    start: int
    end: int
    marker: int | None = None
    span: tuple[int, int] | None = None
    score: float = 0.0

    @property
    def supported(self) -> bool:
        """Whether a passage says what the sentence says."""
        return self.marker is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it rests on. `abstained`: the documents do not hold an answer.

    `statements` are its sentences in order, each with what supports it. `evidence`, 0 to 1, is how
    likely the passages hold an answer, as in `rag.evidence`. `search` is the question that was
    searched for, where a conversation made it another one. `dropped` counts passages that did not
    fit the model's window. `degraded` names the parts that failed; `notice` says in words what the
    reader should know, such as that no model is configured. `timings_ms` has a figure for each
    stage.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    abstained: bool
    model: str
    statements: tuple[Statement, ...] = ()
    evidence: float = 0.0
    search: str = ""
    dropped: int = 0
    degraded: tuple[str, ...] = ()
    notice: str = ""
    invalid_markers: int = 0
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def to_json(self) -> dict[str, Any]:
        """The answer as every interface gives it."""
        return {
            "question": self.question,
            "answer": self.text,
            "abstained": self.abstained,
            "degraded": list(self.degraded),
            "citations": [citation.to_json() for citation in self.citations],
            "statements": [
                {**asdict(s), "text": self.text[s.start : s.end], "supported": s.supported}
                for s in self.statements
            ],
            "evidence": round(self.evidence, 4),
            "search": self.search,
            "dropped": self.dropped,
            "timings_ms": dict(self.timings_ms),
            "model": self.model,
            "usage": asdict(self.usage),
            "notice": self.notice,
            "invalid_markers": self.invalid_markers,
        }
