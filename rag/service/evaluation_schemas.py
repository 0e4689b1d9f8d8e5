"""What goes over the wire about evaluations."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rag.retrieve import Mode
from rag.service.datasets import DATASET
from rag.service.evaluations import Evaluation, Stage, State, Wanted
from rag.service.schemas import NAME, Strict, whole

Depth: TypeAlias = Annotated[int, Field(ge=1, le=1_000), BeforeValidator(whole)]
Limit: TypeAlias = Annotated[int, Field(ge=1, le=100_000), BeforeValidator(whole)]


class EvaluationIn(Strict):
    """What to measure: searches of a collection, by questions whose documents are known."""

    collection: str | None = Field(
        default=None,
        pattern=NAME,
        description="By default that of the settings; with a dataset one of its own documents.",
    )
    dataset: str | None = Field(
        default=None,
        pattern=DATASET,
        description="By default sentences of the documents are the questions.",
    )
    modes: list[Mode] = Field(default=["dense", "keyword", "hybrid"], min_length=1, max_length=10)
    ks: list[Depth] = Field(
        default=[1, 3, 5, 10],
        min_length=1,
        max_length=20,
        description="The depths of recall@k and hit_rate@k.",
    )
    limit: Limit | None = Field(default=None, description="Ask only so many, evenly spread.")

    def wanted(self, collection: str | None) -> Wanted:
        """What is asked of this collection."""
        modes, ks = tuple(dict.fromkeys(self.modes)), tuple(sorted(set(self.ks)))
        return Wanted(collection, self.dataset, modes, ks, self.limit)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"collection": "handbook"},
                {"dataset": "scifact", "modes": ["hybrid"], "ks": [5, 10], "limit": 100},
            ]
        }
    )


class DatasetOut(BaseModel):
    """A dataset.

    `queries` counts those with a relevant document; null where its files cannot be read. With
    `corpus` it has documents of its own; without, a collection must be named to ask it of.
    """

    name: str
    queries: int | None
    corpus: bool


class DatasetsOut(BaseModel):
    """The datasets in the folder of the setting `service.datasets`, by name."""

    datasets: list[DatasetOut]


class MeasuredOut(BaseModel):
    """What one mode of searching reached.

    `metrics` are means over `queries`: recall@k, hit_rate@k, ndcg@10, mrr@10, map@100, and
    ann_recall@10, the share of an exact search's ten best that the index finds. `latency_ms` is of
    single searches for ten passages.
    """

    mode: Mode
    metrics: dict[str, float]
    latency_ms: dict[str, float] = Field(examples=[{"p50": 11.2, "p95": 19.8}])
    queries: int
    remarks: list[str]


class FoundOut(BaseModel):
    """A passage that was found, the first 1,000 characters of its text."""

    document_id: str
    source: str
    title: str
    page: int | None
    score: float
    text: str
    relevant: bool


class WorstOut(BaseModel):
    """A question whose figure is among the ten least of its mode, and under 1.

    `expected` are the titles of documents that should be found, else their sources or ids.
    """

    mode: Mode
    question: str
    figure: str
    value: float
    expected: list[str]
    found: list[FoundOut]


class ComparedOut(BaseModel):
    """A figure of two evaluations, over the questions that both asked.

    `wins` are those that are better than in the baseline. `p`: how often chance alone makes a
    difference at least this large (a paired randomisation test).
    """

    baseline: float
    value: float
    wins: int
    losses: int
    ties: int
    p: float


class EvaluationSummary(BaseModel):
    """An evaluation. Times are in seconds since 1970, UTC.

    `collection` is null until the one that holds the dataset's own documents is known. `done` of
    `total` are documents while the stage is "indexing", otherwise questions, over all modes.
    `settings` say what was measured with what, as `rag eval --json` does; empty until it is done.
    """

    id: str
    state: State
    collection: str | None
    dataset: str | None
    modes: list[Mode]
    ks: list[int]
    limit: int | None
    done: int
    total: int
    stage: Stage
    error: str
    added_at: float
    started_at: float | None
    ended_at: float | None
    settings: dict[str, Any]


class EvaluationOut(EvaluationSummary):
    """An evaluation with its results.

    `comparison`: for each mode that it and the baseline measured with some of the same questions,
    each figure over these; null without a baseline, or until both are done.
    """

    results: list[MeasuredOut]
    worst: list[WorstOut]
    comparison: dict[str, dict[str, ComparedOut]] | None

    @classmethod
    def of(
        cls,
        evaluation: Evaluation,
        comparison: dict[str, dict[str, ComparedOut]] | None = None,
    ) -> EvaluationOut:
        """Of what is kept."""
        return cls(**evaluation.to_json(), comparison=comparison)


class EvaluationsOut(BaseModel):
    """Evaluations without their results, newest first."""

    evaluations: list[EvaluationSummary]
