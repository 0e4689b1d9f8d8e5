"""Why these passages: how each leg of the search saw them, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import streamlit as st

from ui import markup, state
from ui.client import Json, ServiceError
from ui.conversation import Exchange
from ui.passage import chips, name_of

_LEGS = ("dense", "keyword", "rerank", "neighbour")
# The stages that follow one another, and a colour for each that can be told apart from the others
# (Okabe and Ito, 2008).
_STAGES = {
    "embed": ("why.embed", "#0072b2"),
    "search": ("why.search", "#009e73"),
    "rerank": ("why.rerank_time", "#cc79a7"),
    "first_token": ("why.first_token", "#e69f00"),
    "generate": ("why.generate", "#d55e00"),
}
_REST = "#999999"


def show(exchange: Exchange, answer: Json) -> None:
    """A panel below an answer. It is searched for when it is first opened."""
    say = state.say()
    panel = st.expander(say("why.title"), key=f"why/{exchange.id}", on_change="rerun")
    if not panel.open:
        return
    with panel:
        if exchange.found is None:
            question = answer["search"] or exchange.question
            try:
                exchange.found = state.service().search(exchange.choices.search(question))
            except ServiceError as error:
                st.error(state.in_words(error), icon=":material/error:")
                return
        found = exchange.found
        generation = found.get("collection_generation")
        if generation != answer["collection_generation"]:
            st.caption(say("why.changed"))
        st.html(_legs(found))
        chips(f"why-{exchange.id}", found["hits"], exchange.choices.collection)
        st.html(_timings(answer))


def _legs(found: Json) -> str:
    say, hits = state.say(), found["hits"]
    used = [name for name in _LEGS if any(leg["name"] == name for h in hits for leg in h["legs"])]
    rows = []
    for hit in hits:
        legs = {leg["name"]: leg for leg in hit["legs"]}
        page = f", {say('chat.page', page=hit['page'])}" if hit["page"] else ""
        name = f"{hit['marker']}. {name_of(hit['source'])}{page}"
        rows.append([name, f"{hit['score']:.3f}", *(_leg(legs.get(leg)) for leg in used)])
    heads = [say("why.passage"), say("why.score"), *(say(f"why.{leg}") for leg in used)]
    return markup.table(heads, rows, say("why.caption"))


def _leg(leg: Json | None) -> str:
    say = state.say()
    if leg is None:
        return say("why.none")
    if leg["name"] == "neighbour":
        return "•"
    values = {"rank": leg["rank"], "score": f"{leg['score']:.3f}", "weight": f"{leg['weight']:.2f}"}
    return say("why.leg", **values)


def _timings(answer: Json) -> str:
    """The stages as a bar, and in words below it."""
    say, timings = state.say(), answer["timings_ms"]
    total = timings.get("total", 0.0)
    if answer["cached"]:
        return (
            f"<p>{escape(say('why.timings'))}: {escape(say('why.from_cache', ms=_ms(total)))}</p>"
        )
    parts = _parts(timings)
    bar = "".join(
        f'<span style="background:{colour};flex:{max(ms, 0.1):.2f}"></span>'
        for _, ms, colour in parts
    )
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} {_ms(ms)} ms</span>'
        for name, ms, colour in parts
    )
    head = f"{say('why.timings')}: {say('why.total', ms=_ms(total))}"
    return (
        f'<p>{escape(head)}</p><div class="rag-bar" aria-hidden="true">{bar}</div>'
        f'<div class="rag-legend">{legend}</div>'
    )


def _parts(timings: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """(name, milliseconds, colour) of each stage that took time, and of what is between them."""
    say = state.say()
    took = {name: timings.get(name, 0.0) for name in _STAGES}
    before = took["embed"] + took["search"] + took["rerank"]
    # It counts from the question; here only what came after the search.
    took["first_token"] = max(0.0, took["first_token"] - before)
    parts = [(say(_STAGES[name][0]), ms, _STAGES[name][1]) for name, ms in took.items() if ms > 0]
    rest = timings.get("total", 0.0) - sum(took.values())
    return [*parts, (say("why.rest"), rest, _REST)] if rest > 0.5 else parts


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
