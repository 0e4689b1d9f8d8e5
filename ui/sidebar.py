"""What stands beside each part of the page: how questions are to be answered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from rag.service.schemas import NAME
from ui import connection, state, texts
from ui.choices import Choices
from ui.client import Service, ServiceError
from ui.markup import plain

_MODES = ("hybrid", "dense", "keyword")
_OF_EVALUATIONS = "eval-"  # begins the names of collections that evaluations make
_MOST_PASSAGES = 20
_MOST_TOKENS = 4_096
_WHOLE = 2**53  # beyond, a browser's numbers are no longer whole


def language() -> None:
    """In which language the page is; the address remembers what was chosen."""
    # Before the widget is there: it would be the one that decides otherwise.
    st.session_state.setdefault(state.LANGUAGE, state.language())
    st.sidebar.segmented_control(
        texts.texts("en")("side.language") + " / " + texts.texts("zh")("side.language"),
        texts.LANGUAGES,
        key=state.LANGUAGE,
        format_func=lambda one: texts.texts(one)("language"),
        label_visibility="collapsed",
        required=True,
        bind="query-params",
    )


def show() -> Choices:
    """All of it; what is chosen. Raises ServiceError."""
    say, service = state.say(), state.service()
    with st.sidebar:
        collection = _collection(service)
        mode = st.segmented_control(
            say("side.mode"),
            _MODES,
            default=_MODES[0],
            format_func=lambda one: say(f"side.mode_{one}"),
            help=say("side.mode_help"),
            required=True,
            key="mode",
            persist_state="session",
        )
        top_k = st.slider(
            say("side.top_k"),
            1,
            _MOST_PASSAGES,
            5,
            help=say("side.top_k_help"),
            key="top_k",
            persist_state="session",
        )
        with st.expander(say("side.filters"), icon=":material/filter_alt:"):
            where = _where(collection, _fields(service, collection))
        with st.expander(say("side.model"), icon=":material/tune:"):
            rerank, temperature, max_tokens = _model()
        choices = Choices(collection, mode, top_k, where, rerank, temperature, max_tokens)
        with st.expander(say("side.elsewhere"), icon=":material/terminal:"):
            _elsewhere(choices)
        if state.has_key() and st.button(say("key.forget"), type="tertiary"):
            state.use_key("")
            st.rerun()
    return choices


def _collection(service: Service) -> str:
    say = state.say()
    names, default = service.collections()
    known = [name for name in names if not name.startswith(_OF_EVALUATIONS)]
    chosen = st.session_state.get("collection")
    for name in (default, chosen):
        if name and name not in known:
            known.append(name)
    known = known or ["default"]
    first = default if default in known else known[0]
    picked = st.selectbox(
        say("side.collection"),
        known,
        index=known.index(first),
        format_func=str,
        help=say("side.collection_help"),
        accept_new_options=True,
        key="collection",
        persist_state="session",
    )
    if picked and not re.fullmatch(NAME, picked):
        st.warning(say("side.collection_wrong"))
        return first
    return picked or first


def _fields(service: Service, collection: str) -> Sequence[Mapping[str, Any]]:
    try:
        return service.fields(collection)
    except ServiceError as error:
        if error.code in ("unknown_collection", "not_found"):  # the first upload makes it
            return []
        raise


def _where(collection: str, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A condition for each field that was picked, all of which must hold."""
    say = state.say()
    if not fields:
        st.caption(say("side.filters_none"))
        return {}
    twice = Counter(field["name"] for field in fields)
    by_name = {
        field["name"] if twice[field["name"]] == 1 else f"{field['name']} ({field['kind']})": field
        for field in fields
    }
    picked = st.multiselect(
        say("side.filters_by"),
        list(by_name),
        help=say("side.filters_help"),
        placeholder=say("side.choose"),
        key=f"fields/{collection}",
        persist_state="session",
    )
    conditions = [_condition(collection, by_name[name]) for name in picked if name in by_name]
    given = [condition for condition in conditions if condition]
    return {"$and": given} if len(given) > 1 else next(iter(given), {})


def _condition(collection: str, field: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen for a field; nothing where nothing was."""
    say, name = state.say(), field["name"]
    key, label = f"field/{collection}/{name}/{field['kind']}", plain(name)
    if field["kind"] == "truth":
        truth = st.segmented_control(
            label,
            [True, False],
            format_func=lambda one: say("side.true" if one else "side.false"),
            key=key,
            persist_state="session",
        )
        return {} if truth is None else {name: truth}
    if field["kind"] == "number":
        return _between(name, field["least"], field["greatest"], key)
    counts = {one["value"]: one["documents"] for one in field["values"]}
    chosen = st.multiselect(
        label,
        list(counts),
        format_func=lambda one: f"{one} ({counts[one]})" if one in counts else one,
        accept_new_options=bool(field["more"]),
        placeholder=say("side.choose"),
        key=key,
        persist_state="session",
    )
    return {name: {"$in": chosen}} if chosen else {}


def _between(name: str, least: float, greatest: float, key: str) -> dict[str, Any]:
    say = state.say()
    whole = all(float(end).is_integer() and abs(end) < _WHOLE for end in (least, greatest))
    number = int if whole else float
    st.caption(say("side.field_between", field=plain(name)))
    left, right = st.columns(2)
    low = left.number_input(
        say("side.from"), value=number(least), key=f"{key}/from", persist_state="session"
    )
    high = right.number_input(
        say("side.to"), value=number(greatest), key=f"{key}/to", persist_state="session"
    )
    if low > high:
        st.warning(say("side.nothing_between"))
    bounds = {"$gte": low if low != least else None, "$lte": high if high != greatest else None}
    given = {operator: bound for operator, bound in bounds.items() if bound is not None}
    return {name: given} if given else {}


def _model() -> tuple[bool | None, float | None, int | None]:
    say = state.say()
    rerank = st.toggle(
        say("side.rerank"),
        value=True,
        help=say("side.rerank_help"),
        key="rerank",
        persist_state="session",
    )
    temperature = max_tokens = None
    if st.toggle(say("side.own_temperature"), key="own_temperature", persist_state="session"):
        temperature = st.slider(
            say("side.temperature"),
            0.0,
            2.0,
            0.0,
            0.1,
            help=say("side.temperature_help"),
            key="temperature",
            persist_state="session",
        )
    if st.toggle(say("side.own_tokens"), key="own_tokens", persist_state="session"):
        max_tokens = st.slider(
            say("side.max_tokens"),
            16,
            _MOST_TOKENS,
            512,
            16,
            key="max_tokens",
            persist_state="session",
        )
    return None if rerank else False, temperature, max_tokens


def _elsewhere(choices: Choices) -> None:
    """The same as a command and as a request, with the question that was asked last."""
    say, asked = state.say(), state.conversation().exchanges
    question = asked[-1].question if asked else say("side.example")
    at = connection.current()
    url = "http://127.0.0.1:8080" if at.own else at.service.url
    st.caption(say("side.elsewhere_help"))
    st.caption(say("side.command"))
    st.code(choices.command(question), language=None, wrap_lines=True)
    st.caption(say("side.request_own" if at.own else "side.request"))
    st.code(
        choices.request(question, url, key=bool(state.service().key)),
        language=None,
        wrap_lines=True,
    )
