"""How `rag eval` tells its figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.evaluation.compare import Comparison
    from rag.evaluation.evaluate import Evaluation
    from rag.evaluation.summary import AnswerEvaluation


def as_json(found: Evaluation, compared: Mapping[str, Comparison] | None) -> dict[str, Any]:
    """An evaluation, and its comparison with a baseline, as `rag eval --json` prints them."""
    figures = {
        name: {key: round(value, 6) for key, value in asdict(one).items()}
        for name, one in (compared or {}).items()
    }
    return found.to_json() | ({"baseline": figures} if compared else {})


def show(done: Mapping[str, Evaluation], compared: Mapping[str, Mapping[str, Comparison]]) -> None:
    """Print the evaluations, a column each, then their comparisons, a table each."""
    columns = list(done.values())
    names = dict.fromkeys(name for found in columns for name in found.metrics)
    rows: list[list[object]] = [
        ["search", *(found.settings["search"]["mode"] for found in columns)],
        ["queries", *(found.queries for found in columns)],
    ]
    if any(found.settings["fusion"] for found in columns):
        rows.append(["joined by", *(_fusion(found.settings["fusion"]) for found in columns)])
    rows += [[name, *(f"{found.metrics[name]:.4f}" for found in columns)] for name in names]
    for part in ("p50", "p95"):
        rows.append([f"{part} ms", *(f"{found.latency_ms[part]:.1f}" for found in columns)])
    labels = [f"{label} ({done[label].settings['index']})" for label in done]
    table([columns[0].dataset.name, *labels], rows)
    for label, figures in compared.items():
        head = [label, "baseline", "now", "difference", "better", "worse", "same", "p"]
        body: list[list[object]] = [
            [
                name,
                f"{c.baseline:.4f}",
                f"{c.value:.4f}",
                f"{c.value - c.baseline:+.4f}",
                *(c.wins, c.losses, c.ties),
                f"{c.p:.4f}",
            ]
            for name, c in figures.items()
        ]
        table(head, body)


def _fusion(values: Mapping[str, float] | None) -> str:
    from rag.fusion import Fusion

    if values is None:
        return ""
    if values == asdict(Fusion()):
        return "the defaults"
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table whose head is a line of its own where it is not drawn."""
    from rag import terminal

    terminal.table(head, rows if sys.stdout.isatty() else [head, *rows])


def failures(done: Mapping[str, Evaluation | AnswerEvaluation], floors: Mapping[str, float]) -> int:
    """The exit status; a line is said for each figure that is too low."""
    from rag import terminal

    status = 0
    for label, found in done.items():
        for name, floor in floors.items():
            value = found.metrics.get(name)
            if value is None or value < floor:
                status = 1
                told = "cannot be measured" if value is None else f"is {value:.4f}, under {floor:g}"
                terminal.say(f"{label}: {name} {told}")
    return status
