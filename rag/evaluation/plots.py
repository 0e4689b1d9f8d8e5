"""The plots of a report, as SVG that stands in an HTML page without anything else."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from rag.errors import MissingExtra
from rag.evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def recall_curve(evaluations: Mapping[str, Evaluation], ks: Sequence[int]) -> str:
    """Recall@k against k, a line for each evaluation."""
    figure, axes = _axes("k, documents", "recall@k")
    for name, done in evaluations.items():
        axes.plot(ks, [done.metrics[f"recall@{k}"] for k in ks], "o-", label=name, alpha=0.8)
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure)


def recall_against_latency(evaluations: Mapping[str, Evaluation], metric: str) -> str:
    """A point for each evaluation: its median latency, up to its 95th percentile, and a figure."""
    figure, axes = _axes("milliseconds a query: median, line to the 95th percentile", metric)
    for name, done in evaluations.items():
        p50, p95 = done.latency_ms["p50"], done.latency_ms["p95"]
        value = done.metrics[metric]
        axes.errorbar(
            p50, value, xerr=np.array([[0.0], [p95 - p50]]), fmt="o", capsize=3, label=name
        )
    axes.set_xlim(left=0)
    axes.margins(y=0.5)
    axes.legend(loc="best", frameon=False)
    return _svg(figure)


def check_installed() -> None:
    """Raise MissingExtra where nothing can be drawn."""
    if find_spec("matplotlib") is None:
        raise MissingExtra(
            "a report needs matplotlib", "install it with: pip install 'ragline[eval]'"
        )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "rag", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # Only the drawing: the rest names addresses, of which none is needed inside HTML.
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r' xmlns(?::xlink)?="[^"]*"', "", drawing).replace("xlink:href", "href")
