"""How well passages are found: evaluations begun, shown as figures and plots, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui import markup, state
from ui.choices import Choices
from ui.client import Json, ServiceError
from ui.guard import guarded
from ui.markup import plain
from ui.passage import name_of

if TYPE_CHECKING:
    import altair

_MODES = ("dense", "keyword", "hybrid")
_POLL_S = 1.0
_GOING_ON = ("queued", "running")
_COLOURS = {"dense": "#0072b2", "keyword": "#e69f00", "hybrid": "#009e73"}  # Okabe and Ito, 2008
_TEXT = 600  # characters of a passage that was found


def show(choices: Choices) -> None:
    """The part of the page."""
    say = state.say()
    st.title(say("evaluation.title"))
    st.markdown(say("evaluation.intro"))
    if "admin" in state.service().scopes():
        _begin(choices.collection)
    else:
        st.caption(say("evaluation.rights"))
    runs = state.service().evaluations()
    if not runs:
        st.caption(say("evaluation.none"))
        return
    going_on = [run for run in runs if run["state"] in _GOING_ON]
    if going_on:
        st.fragment(_progress, run_every=_POLL_S)([run["id"] for run in going_on])
    over = [run for run in runs if run["state"] not in _GOING_ON]
    if over:
        _chosen(over)


def _begin(collection: str) -> None:
    say, service = state.say(), state.service()
    own = say("evaluation.own", collection=collection)
    has_corpus = {one["name"]: one["corpus"] for one in service.datasets()}
    sets = ["", *has_corpus]

    with st.form("evaluation"):
        left, middle, right = st.columns([3, 3, 1.2])
        dataset = left.selectbox(
            say("evaluation.dataset"), sets, format_func=lambda one: one or own
        )
        modes = middle.multiselect(
            say("evaluation.modes"),
            _MODES,
            default=_MODES,
            format_func=lambda one: say(f"side.mode_{one}"),
        )
        limit = right.number_input(say("evaluation.limit"), 1, 10_000, 200, 50)
        if not st.form_submit_button(say("evaluation.run"), type="primary") or not modes:
            return
    body: Json = {"modes": modes, "limit": limit, "dataset": dataset or None}
    if (
        not dataset or not has_corpus[dataset]
    ):  # otherwise it is indexed into a collection of its own
        body["collection"] = collection
    service.evaluate(body)
    st.rerun()


@guarded
def _progress(ids: Sequence[str]) -> None:
    """Of each that goes on. Once one is over, the page is shown anew."""
    say, service = state.say(), state.service()
    for one in ids:
        try:
            run = service.evaluation(one)
        except ServiceError as error:
            if error.code == "not_found":
                st.rerun()
            raise
        if run["state"] not in _GOING_ON:
            st.rerun()
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        share = run["done"] / run["total"] if run["total"] else 0.0
        left.progress(min(share, 1.0), f"{plain(_named(run))}: {_stage(run)}")
        if right.button(say("evaluation.stop"), key=f"stop/{one}", type="tertiary"):
            service.end_evaluation(one)
            st.rerun()


def _stage(run: Json) -> str:
    say = state.say()
    if run["stage"] == "waiting":
        return say("evaluation.queued")
    if run["stage"] == "indexing":
        return say("evaluation.indexing")
    if not run["total"]:
        return say("evaluation.reading")
    return say("evaluation.running", done=run["done"], total=run["total"])


def _chosen(runs: Sequence[Json]) -> None:
    say, service = state.say(), state.service()
    names = {run["id"]: _named(run) for run in runs}
    finished = [run["id"] for run in runs if run["state"] == "done"]
    left, right, last = st.columns([3, 3, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        say("evaluation.choose"), list(names), format_func=names.__getitem__, key="run"
    )
    # "" is none: Streamlit takes None for no choice at all.
    others = ["", *(one for one in finished if one != chosen)]
    baseline = right.selectbox(
        say("evaluation.baseline"),
        others,
        format_func=lambda one: names.get(one, say("evaluation.no_baseline")),
        key="baseline",
    )
    if chosen is None:  # there is always one; the widget's type does not know
        return
    if last.button(say("evaluation.forget"), type="tertiary"):
        service.end_evaluation(chosen)
        st.rerun()
    run = service.evaluation(chosen, baseline or None)
    if run["state"] == "failed":
        st.error(say("evaluation.failed", why=plain(run["error"])), icon=":material/error:")
        return
    _results(run)


def _results(run: Json) -> None:
    say, results = state.say(), run["results"]
    left, right = st.columns(2)
    with left:
        st.subheader(say("evaluation.recall"))
        st.altair_chart(_recall(run), alt=say("evaluation.recall_alt"))
    with right:
        k = _k(run)
        st.subheader(say("evaluation.latency"))
        st.altair_chart(_latency(run, k), alt=say("evaluation.latency_alt", k=k))
    st.html(_figures(results))
    for remark in dict.fromkeys(remark for one in results for remark in one["remarks"]):
        st.caption(plain(remark))
    if run.get("comparison"):
        _compare(run["comparison"])
    _worst(run)


def _recall(run: Json) -> Any:
    import altair

    say = state.say()
    rows = [
        {"mode": say(f"side.mode_{one['mode']}"), "k": k, "recall": one["metrics"][f"recall@{k}"]}
        for one in run["results"]
        for k in run["ks"]
    ]
    base = altair.Chart({"values": rows}).encode(
        x=altair.X(
            "k:Q", scale=altair.Scale(type="log", nice=False), axis=altair.Axis(values=run["ks"])
        ),
        y=altair.Y("recall:Q", title=say("evaluation.recall"), scale=altair.Scale(domain=[0, 1])),
        color=_colour(run),
        tooltip=["mode:N", "k:Q", altair.Tooltip("recall:Q", format=".3f")],
    )
    return base.mark_line() + base.mark_point(filled=True, size=60)


def _latency(run: Json, k: int) -> Any:
    import altair

    say = state.say()
    rows = [
        {
            "mode": say(f"side.mode_{one['mode']}"),
            "ms": one["latency_ms"]["p50"],
            "recall": one["metrics"][f"recall@{k}"],
        }
        for one in run["results"]
    ]
    base = altair.Chart({"values": rows}).encode(
        x=altair.X("ms:Q", title=say("evaluation.ms"), scale=altair.Scale(zero=True)),
        y=altair.Y("recall:Q", title=f"recall@{k}", scale=altair.Scale(domain=[0, 1])),
        color=_colour(run),
        tooltip=[
            "mode:N",
            altair.Tooltip("ms:Q", format=".1f"),
            altair.Tooltip("recall:Q", format=".3f"),
        ],
    )
    return base.mark_point(filled=True, size=120) + base.mark_text(dy=-14).encode(text="mode:N")


def _colour(run: Json) -> altair.Color:
    import altair

    say = state.say()
    modes = [one["mode"] for one in run["results"]]
    scale = altair.Scale(
        domain=[say(f"side.mode_{mode}") for mode in modes],
        range=[_COLOURS[mode] for mode in modes],
    )
    return altair.Color("mode:N", title=None, scale=scale, legend=altair.Legend(orient="bottom"))


def _k(run: Json) -> int:
    """The k that people ask for, or the one next below."""
    ks: list[int] = run["ks"]
    return max((k for k in ks if k <= 5), default=ks[0])


def _figures(results: Sequence[Json]) -> str:
    say = state.say()
    names = list(results[0]["metrics"])
    heads = [say("evaluation.modes"), *names, say("evaluation.p50"), say("evaluation.p95")]
    heads.append(say("evaluation.questions"))
    rows = [
        [
            say(f"side.mode_{one['mode']}"),
            *(f"{one['metrics'][name]:.3f}" for name in names),
            *(f"{one['latency_ms'][name]:.1f}" for name in ("p50", "p95")),
            str(one["queries"]),
        ]
        for one in results
    ]
    return markup.table(heads, rows, say("evaluation.figures"))


def _compare(comparison: Json) -> None:
    say = state.say()
    names = ("modes", "figure", "was", "is", "better", "worse", "chance")
    rows = [
        [
            say(f"side.mode_{mode}"),
            figure,
            f"{one['baseline']:.3f}",
            f"{one['value']:.3f}",
            str(one["wins"]),
            str(one["losses"]),
            f"{one['p']:.3f}",
        ]
        for mode, figures in comparison.items()
        for figure, one in figures.items()
        if one["wins"] or one["losses"]
    ]
    if not rows:
        st.caption(say("evaluation.the_same"))
        return
    heads = [say(f"evaluation.{name}") for name in names]
    st.html(markup.table(heads, rows, say("evaluation.difference")))


def _worst(run: Json) -> None:
    say = state.say()
    st.subheader(say("evaluation.worst"))
    modes = [one["mode"] for one in run["results"]]
    tabs = st.tabs([say(f"side.mode_{mode}") for mode in modes])
    for mode, tab in zip(modes, tabs, strict=True):
        with tab:
            for one in run["worst"]:
                if one["mode"] == mode:
                    _question(one)


def _question(one: Json) -> None:
    say = state.say()
    with st.expander(f"{plain(one['question'])} · {plain(one['figure'])} {one['value']:.2f}"):
        names = ", ".join(name_of(name) for name in one["expected"]) or "–"
        st.markdown(f"**{say('evaluation.expected')}**: {plain(names)}")
        st.markdown(f"**{say('evaluation.found')}**")
        if not one["found"]:
            st.caption(say("evaluation.nothing_found"))
        for n, hit in enumerate(one["found"], start=1):
            page = f", {say('chat.page', page=hit['page'])}" if hit["page"] else ""
            right = f" :green-badge[{say('evaluation.right')}]" if hit["relevant"] else ""
            st.markdown(f"{n}. {plain(name_of(hit['source']))}{page}{right}")
            st.html(f'<div class="rag-passage">{markup.passage(hit["text"][:_TEXT], [])}</div>')


def _named(run: Json) -> str:
    """What was asked, when, and how much of it."""
    from ui.documents import dated

    say = state.say()
    about = run["dataset"] or say("evaluation.own", collection=run["collection"] or "…")
    modes = ", ".join(say(f"side.mode_{mode}") for mode in run["modes"])
    return f"{dated(int(run['added_at']), seconds=True)} · {about} · {modes} · {run['id'][:4]}"
