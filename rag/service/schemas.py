"""What goes over the wire: requests and replies, with examples."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from rag.filters import Filter, parse
from rag.retrieve import MAX_QUESTION, Mode
from rag.types import DocumentRecord, Sampling, Turn

MAX_TOP_K = 100
MAX_QUESTIONS = 64
MAX_TOGETHER = 64_000  # characters of the questions of a search: they are embedded in one go
MAX_TURNS = 50
MAX_ANSWER = 100_000  # characters of an earlier answer

# Something that is not white space, and no control characters but tab and line ends.
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
TEXT = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


def legible(text: str) -> str:
    """The text, which must match `TEXT`. Pydantic's own error would show that pattern."""
    if not text or text.isspace() or re.search(f"[{_CONTROL}]", text):
        raise PydanticCustomError("text", "is empty or holds control characters")
    return text


Where: TypeAlias = Annotated[
    dict[str, Any], WithJsonSchema({"$ref": "#/components/schemas/Filter"})
]
"""A filter; `rag.service.openapi` describes it."""
Question: TypeAlias = Annotated[
    str,
    Field(
        max_length=MAX_QUESTION,
        json_schema_extra={"minLength": 1, "pattern": TEXT},
        examples=["How many days of leave do I get?"],
    ),
    AfterValidator(legible),
]
CollectionName: TypeAlias = Annotated[
    str | None, Field(pattern=NAME, description="By default the collection of the settings.")
]


def whole(value: object) -> object:
    """The value, as an integer where it is one written like 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# To JSON Schema, 5.0 is an integer.
TopK: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TOP_K), BeforeValidator(whole)]
Expand: TypeAlias = Annotated[int, Field(ge=0, le=10), BeforeValidator(whole)]
MaxTokens: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(whole)]


_AS_SET = "By default as in the settings."


class Strict(BaseModel):
    """A request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TurnIn(Strict):
    """An earlier question and what was answered."""

    question: Question
    answer: str = Field(max_length=MAX_ANSWER)


class Searching(Strict):
    """What /query and /search have in common."""

    collection: CollectionName = None
    top_k: TopK = Field(default=5, description="How many passages at most.")
    where: Where | None = Field(
        default=None, description="Only from documents whose metadata is like this."
    )
    mode: Mode | None = Field(
        default=None, description=f"By meaning, by words, or by both. {_AS_SET}"
    )
    rerank: bool | None = Field(
        default=None, description=f"Whether a reranker, if one is set, reads the best. {_AS_SET}"
    )
    diversity: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description=f"How much passages should differ: 0 not at all, 1 above all. {_AS_SET}",
    )
    expand: Expand | None = Field(
        default=None,
        description=f"How many neighbours before and after each passage go along. {_AS_SET}",
    )

    def condition(self) -> Filter | None:
        """The filter. Raises InvalidFilter."""
        return parse(self.where)

    def how(self) -> dict[str, Any]:
        """What is asked of the search, None where nothing is."""
        return {name: getattr(self, name) for name in ("mode", "rerank", "diversity", "expand")}


class QueryIn(Searching):
    """A question."""

    question: Question
    history: list[TurnIn] = Field(
        default=[],
        max_length=MAX_TURNS,
        description="What was asked and answered before, oldest first.",
    )
    max_tokens: MaxTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    stream: bool = False

    def turns(self) -> tuple[Turn, ...]:
        """The earlier turns."""
        return tuple(Turn(turn.question, turn.answer) for turn in self.history)

    def sampling(self) -> Sampling:
        """What is asked of the generator."""
        return Sampling(self.max_tokens, self.temperature)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"question": "How many days of leave do I get?"},
                {
                    "question": "设备报警代码 E-22 是什么意思？",
                    "top_k": 3,
                    "where": {"lang": "zh"},
                    "mode": "hybrid",
                    "stream": True,
                },
            ]
        }
    )


_QUESTIONS = (
    f"send one question, or a list of 1 to {MAX_QUESTIONS}: each a text of at most "
    f"{MAX_QUESTION:,} characters, not empty and without control characters"
)


class SearchIn(Searching):
    """A question, or several at once."""

    question: (
        Question | Annotated[list[Question], Field(min_length=1, max_length=MAX_QUESTIONS)]
    ) = Field(
        description=f"One, or up to {MAX_QUESTIONS} of {MAX_TOGETHER:,} characters together.",
        examples=["balance the cells", ["balance the cells", "error E-22"]],
    )

    @field_validator("question", mode="wrap")
    @classmethod
    def _checked(cls, given: object, check: ValidatorFunctionWrapHandler) -> str | list[str]:
        try:
            question: str | list[str] = check(given)
        except ValidationError as error:
            raise PydanticCustomError("questions", _QUESTIONS) from error
        if isinstance(question, list) and sum(map(len, question)) > MAX_TOGETHER:
            raise PydanticCustomError(
                "questions",
                f"is over {MAX_TOGETHER:,} characters together; ask in several requests",
            )
        return question

    def questions(self) -> list[str]:
        """Always a list."""
        return [self.question] if isinstance(self.question, str) else self.question

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"question": "balance the cells"},
                {
                    "question": ["balance the cells", "error E-22"],
                    "top_k": 3,
                    "where": {"lang": "en"},
                    "mode": "keyword",
                },
            ]
        }
    )


class CitationOut(BaseModel):
    """A passage that the answer rests on; `marker` is the n of [n] in its text.

    `spans` are the sentences of `text` that support it, [start, end) in code points; `span` is the
    first.
    """

    marker: int
    chunk_id: str
    document_id: str
    source: str
    title: str
    page: int | None
    score: float
    text: str
    spans: list[tuple[int, int]]
    span: tuple[int, int] | None


class StatementOut(BaseModel):
    """A sentence of the answer and what supports it."""

    start: int
    end: int
    marker: int | None
    span: tuple[int, int] | None
    score: float
    text: str
    supported: bool


class UsageOut(BaseModel):
    """Tokens that the model counted; 0 where it does not say."""

    prompt_tokens: int
    completion_tokens: int
    truncated: bool


class AnswerOut(BaseModel):
    """The answer. `abstained`: the documents do not hold one. `degraded` names what failed."""

    model_config = ConfigDict(protected_namespaces=())

    question: str
    answer: str
    citations: list[CitationOut]
    statements: list[StatementOut]
    abstained: bool
    evidence: float
    degraded: list[str]
    notice: str
    search: str
    dropped: int
    invalid_markers: int
    usage: UsageOut
    timings_ms: dict[str, float]
    model: str
    collection: str
    collection_generation: str | None
    cached: bool
    request_id: str


class HitOut(CitationOut):
    """A passage that was found, and how each leg of the search saw it."""

    legs: list[LegOut]


class LegOut(BaseModel):
    """A way of searching: the hit's rank there from 1, its score, its share in the whole."""

    name: str
    rank: int
    score: float
    weight: float


class ResultOut(BaseModel):
    """What was found for one question."""

    question: str
    hits: list[HitOut]
    degraded: list[str]
    timings_ms: dict[str, float]


class SearchOut(BaseModel):
    """What was found for each question, in their order."""

    results: list[ResultOut]
    collection: str
    collection_generation: str | None
    request_id: str


class CollectionOut(BaseModel):
    """A collection."""

    name: str
    store: str
    dim: int
    metric: Literal["cosine", "ip", "l2"]
    index: str
    embedder: str | None
    chunks: int
    generation: str | None


class CollectionsOut(BaseModel):
    """The collections that the caller may see. `default` need not be there yet."""

    collections: list[str]
    default: str | None


class DocumentOut(BaseModel):
    """A document; `chunks` counts those of its newest version.

    `size` is that of the file which it was made from, in bytes; null where that is not at hand, or
    was written to since.
    """

    id: str
    source: str
    title: str
    version: str
    chunks: int
    ingested_at: int
    complete: bool
    size: int | None

    @classmethod
    def of(cls, record: DocumentRecord, size: int | None) -> DocumentOut:
        """Of what the store says."""
        return cls(**asdict(record), size=size)


class DocumentsOut(BaseModel):
    """Some documents, ordered by source.

    `next` is the `after` of the request for those behind them; null where there are none.
    """

    documents: list[DocumentOut]
    next: str | None


class ValueOut(BaseModel):
    """A value, and how many documents have it."""

    value: str | bool | int | float
    documents: int


class FieldOut(BaseModel):
    """A metadata field; one with values of two kinds is there twice.

    `values` are the most frequent, 50 at most; `more`: there are others. `least` and `greatest` are
    those of numbers, else null.
    """

    name: str
    kind: Literal["text", "number", "truth"]
    values: list[ValueOut]
    more: bool
    least: int | float | None
    greatest: int | float | None


class FieldsOut(BaseModel):
    """The metadata that is really there: 100 fields at most, ordered by name.

    `complete`: every document that the caller may see was looked at, and no field left out.
    """

    fields: list[FieldOut]
    complete: bool


class FeedbackIn(Strict):
    """What somebody thinks of an answer; `answer_id` is its `request_id`."""

    answer_id: str = Field(pattern="^[0-9a-f]{32}$", examples=["5f0c3c0e9a0b4f6fb1f2a3c4d5e6f708"])
    rating: Literal["up", "down"]
    comment: str = Field(default="", max_length=4_000, examples=["The allowance changed in 2025."])

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"answer_id": "5f0c3c0e9a0b4f6fb1f2a3c4d5e6f708", "rating": "up"},
                {
                    "answer_id": "5f0c3c0e9a0b4f6fb1f2a3c4d5e6f708",
                    "rating": "down",
                    "comment": "The allowance changed in 2025.",
                },
            ]
        }
    )


class FeedbackOut(BaseModel):
    """The rating is kept."""

    id: str


class JobOut(BaseModel):
    """A job. Times are in seconds since 1970, UTC; `report` is that of `rag ingest --json`.

    `error` says in one line why it failed, or while it is queued, what it waits for.
    """

    id: str
    kind: Literal["ingest", "delete"]
    collection: str
    source: str
    document_id: str
    state: Literal["queued", "running", "done", "failed"]
    stage: Literal["waiting", "reading", "writing", "ended"]
    files: int
    chunks: int
    attempts: int
    report: dict[str, Any] | None
    error: str
    added_at: float
    started_at: float | None
    ended_at: float | None


class JobsOut(BaseModel):
    """Some jobs, the one that was added last first."""

    jobs: list[JobOut]


HitOut.model_rebuild()
