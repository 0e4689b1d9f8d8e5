"""The report in HTML: one file, which shows the same everywhere, without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rag.evaluation.compare import Comparison
from rag.evaluation.evaluate import LATENCY_K, Evaluation
from rag.evaluation.plots import recall_against_latency, recall_curve
from rag.types import Hit

_WORST = 20
_SHOWN = 5  # of the passages found
_LENGTH = 300  # characters of a passage
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #e3e6ea;
         vertical-align: top; overflow-wrap: anywhere }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { max-width: 100%; height: auto }
details { margin: .5rem 0 } summary { cursor: pointer }
.quiet { color: #667080 } .good { color: #14713d } .bad { color: #a32020 }
.passage { color: #444c58 }
"""


def html(
    evaluations: Mapping[str, Evaluation],
    ks: Sequence[int],
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> str:
    """The report of the evaluations, by name, and of their comparisons with a baseline."""
    first = next(iter(evaluations.values()))
    recall = f"recall@{10 if 10 in ks else ks[-1]}"
    remarks = dict.fromkeys(remark for done in evaluations.values() for remark in done.remarks)
    parts = [
        f"<h1>Retrieval on {escape(first.dataset.name)}</h1>",
        f"<p>{first.queries} judged queries.</p>",
        "".join(f"<p class=bad>{escape(remark)}</p>" for remark in remarks),
        _figures(evaluations),
        "<h2>Recall by depth</h2>",
        recall_curve(evaluations, ks),
        "<h2>Recall against latency</h2>",
        recall_against_latency(evaluations, recall),
        *(_comparison(name, compared) for name, compared in comparisons.items()),
        *(_worst(name, done) for name, done in evaluations.items()),
        "<h2>Settings</h2>",
        *(_settings(name, done.settings) for name, done in evaluations.items()),
    ]
    title = escape(f"Retrieval on {first.dataset.name}")
    return (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _figures(evaluations: Mapping[str, Evaluation]) -> str:
    columns = list(evaluations.values())
    names = dict.fromkeys(name for done in columns for name in done.metrics)
    rows = [[name, *(_number(done.metrics.get(name)) for done in columns)] for name in names]
    for part in ("p50", "p95"):
        label = f"latency {part}, ms, {LATENCY_K} passages"
        rows.append([label, *(f"{done.latency_ms[part]:.1f}" for done in columns)])
    return _table(["", *evaluations], rows)


def _comparison(name: str, compared: Mapping[str, Comparison]) -> str:
    rows = [
        [
            figure,
            _number(c.baseline),
            _number(c.value),
            f"{c.value - c.baseline:+.4f}",
            str(c.wins),
            str(c.losses),
            str(c.ties),
            f"{c.p:.4f}",
        ]
        for figure, c in compared.items()
    ]
    head = ["", "baseline", "now", "difference", "better", "worse", "same", "p"]
    return f"<h2>{escape(name)} against the baseline</h2>" + _table(head, rows)


def _worst(name: str, done: Evaluation) -> str:
    asked = "".join(_query(query, done) for query in done.worst(_WORST))
    return f"<h2>Worst queries of {escape(name)}</h2>" + asked


def _query(query: str, done: Evaluation) -> str:
    places = {document: n for n, (document, _) in enumerate(done.run.get(query, ()), start=1)}
    wanted = "".join(
        f"<li>{escape(document)} <span class=quiet>grade {grade}, "
        + (f"at rank {places[document]}" if document in places else "not found")
        + "</span></li>"
        for document, grade in done.dataset.qrels[query].items()
        if grade > 0
    )
    passages = "".join(map(_passage, done.passages.get(query, ())[:_SHOWN]))
    text = done.dataset.queries.get(query, "(no text)")
    return (
        f"<details><summary>{escape(text)} <span class=quiet>ndcg@10 "
        f"{done.per_query[query]['ndcg@10']:.3f}, query {escape(query)}</span></summary>"
        f"<p>Relevant:</p><ul>{wanted}</ul>"
        f"<p>Found:</p><ol>{passages or '<li>nothing</li>'}</ol></details>"
    )


def _passage(hit: Hit) -> str:
    text = " ".join(hit.chunk.text.split())
    cut = text if len(text) <= _LENGTH else text[:_LENGTH] + " ..."
    return (
        f"<li>{escape(hit.chunk.title)} <span class=quiet>{escape(hit.chunk.source)}, "
        f"score {hit.score:.3f}</span><br><span class=passage>{escape(cut)}</span></li>"
    )


def _settings(name: str, settings: Mapping[str, Any]) -> str:
    return f"<h3>{escape(name)}</h3>" + _table(
        ["", ""], [[key, str(value)] for key, value in settings.items()], numbers=False
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """The first column is text; `numbers` says that the others are not."""

    def cells(tag: str, row: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if numbers and n else ''}>{escape(cell)}</{tag}>"
            for n, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
