"""The figures of many answers: means, counts, and how fast they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag.evaluation.answers import ERRORS, FIGURES, Scored
from rag.evaluation.files import counted
from rag.types import Answer


@dataclass(frozen=True, slots=True)
class AnswerEvaluation:
    """What was measured on a set of questions. `metrics` are means; see `FIGURES` and `ERRORS`.

    `ttft_ms` is the time from the question to the first token, search included; `tokens_per_s` has
    the median of single answers, after their first token, and that of all of them in the time that
    all took. Both are empty where nothing was streamed, or the model does not count its tokens.
    """

    name: str
    metrics: dict[str, float]
    counts: dict[str, int]
    ttft_ms: dict[str, float]
    tokens_per_s: dict[str, float]
    scored: Sequence[Scored]
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The evaluation as `rag eval --answers --json` prints it."""
        return {
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "counts": self.counts,
            "ttft_ms": {name: round(value, 2) for name, value in self.ttft_ms.items()},
            "tokens_per_s": {name: round(value, 2) for name, value in self.tokens_per_s.items()},
            "settings": self.settings,
            "remarks": list(self.remarks),
        }


def summary(
    name: str,
    rows: Sequence[Scored],
    *,
    seconds: float,
    streamed: bool = True,
    judged: bool = False,
    settings: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
) -> AnswerEvaluation:
    """The figures of many answers, which were made in `seconds`.

    `streamed`: the model wrote them token by token, so that their times mean something. `judged`:
    a judge was asked for verdicts.
    """
    metrics = {}
    for figure in [*FIGURES, *ERRORS]:
        values = [row.figures[figure] for row in rows if figure in row.figures]
        if values:
            metrics[figure] = float(np.mean(values))
    auc = _auc(rows)
    if auc is not None:
        metrics["evidence_auc"] = auc
    answers = [row.answer for row in rows]
    counts = _counts(rows)
    if judged:
        counts["no_verdict"] = sum(not (row.verdict or row.answer.abstained) for row in rows)
    return AnswerEvaluation(
        name,
        metrics,
        counts,
        _first_tokens(answers) if streamed else {},
        _speed(answers, seconds, streamed=streamed),
        rows,
        dict(settings or {}),
        (*remarks, *counted(_odd(rows, counts))),
    )


def _odd(rows: Sequence[Scored], counts: Mapping[str, int]) -> dict[str, int]:
    """What the figures leave out, and what makes them worse than the model is."""
    asked = [row.question for row in rows]
    return {
        "answerable questions without gold answers (their texts are not measured)": sum(
            bool(question.answerable and not question.answers) for question in asked
        ),
        "questions not said to be answerable or not (left out of the figures for abstaining)": sum(
            question.answerable is None for question in asked
        ),
        "answers quoted from the documents because the model failed": counts["degraded"],
        "answers without a verdict of the judge": counts.get("no_verdict", 0),
    }


def _auc(rows: Sequence[Scored]) -> float | None:
    """The area under the ROC curve of `evidence` (the Mann-Whitney statistic; ties count half)."""
    can = np.array([row.answer.evidence for row in rows if row.question.answerable])
    cannot = np.sort([row.answer.evidence for row in rows if row.question.answerable is False])
    if not (can.size and cannot.size):
        return None
    below = np.searchsorted(cannot, can, "left") + np.searchsorted(cannot, can, "right")
    return float(below.mean() / (2 * cannot.size))


def _counts(rows: Sequence[Scored]) -> dict[str, int]:
    answers = [row.answer for row in rows]
    known = [row for row in rows if row.question.answerable is not None]
    return {
        "questions": len(rows),
        "answerable": sum(row.question.answerable is True for row in known),
        "unanswerable": sum(row.question.answerable is False for row in known),
        "answered": sum(not answer.abstained for answer in answers),
        "abstained": sum(answer.abstained for answer in answers),
        **{error: sum(row.figures.get(error, 0.0) == 1.0 for row in rows) for error in ERRORS},
        "sentences": sum(len(answer.statements) for answer in answers),
        "citations": sum(len(answer.citations) for answer in answers),
        "invalid_markers": sum(answer.invalid_markers for answer in answers),
        "truncated": sum(answer.usage.truncated for answer in answers),
        "dropped_passages": sum(answer.dropped for answer in answers),
        "degraded": sum("generator" in answer.degraded for answer in answers),
    }


def _first_tokens(answers: Sequence[Answer]) -> dict[str, float]:
    times = [
        answer.timings_ms["first_token"]
        for answer in answers
        if "first_token" in answer.timings_ms and not answer.degraded
    ]
    if not times:
        return {}
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _speed(answers: Sequence[Answer], seconds: float, *, streamed: bool) -> dict[str, float]:
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    if not tokens:
        return {}
    rates = [
        (answer.usage.completion_tokens - 1) / answer.timings_ms["generate"] * 1e3
        for answer in answers
        if answer.usage.completion_tokens > 1
        and answer.timings_ms.get("generate")
        and not answer.degraded
    ]
    median = {"median": float(np.median(rates))} if rates and streamed else {}
    return {**median, "overall": tokens / seconds}
