"""Where an answer comes from: a chip for each citation, and the passage that it opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import streamlit as st

from ui import markup, state
from ui.client import AWAY, Json, ServiceError
from ui.conversation import quotes
from ui.guard import guarded

_MARKS, _MARK = 20, 2_000  # marks, and characters of each, that the service takes


def name_of(source: str) -> str:
    """A file's name, without where it lies."""
    return PurePath(source).name or source


def chips(about: str, citations: Sequence[Json], collection: str) -> None:
    """A button for each citation, or passage that was found; `about` tells them from others."""
    say = state.say()
    with st.container(horizontal=True, gap="small", key=f"chips-{about}"):
        for one in citations:
            page = f", {say('chat.page', page=one['page'])}" if one["page"] else ""
            name = markup.plain(name_of(one["source"]))
            if st.button(
                f":small[**{one['marker']}** {name}{page}]",
                key=f"cited/{about}/{one['marker']}",
                help=say("passage.open", marker=one["marker"], name=name),
                icon=":material/article:",
            ):
                _open(one, collection)


def _open(citation: Json, collection: str) -> None:
    title = markup.plain(citation["title"] or name_of(citation["source"]))
    st.dialog(title, width="large", icon=":material/article:")(_show)(citation, collection)


@guarded
def _show(citation: Json, collection: str) -> None:
    say, page = state.say(), citation["page"]
    name = name_of(citation["source"])
    place = f", {say('chat.page', page=page)}" if page else ""
    st.caption(f"[{citation['marker']}] {markup.plain(citation['source'])}{place}")
    if citation["spans"]:
        st.caption(say("passage.marked"))
    with st.container(key="passage"):
        st.html(
            f'<div class="rag-passage">{markup.passage(citation["text"], citation["spans"])}</div>'
        )
    if page and citation["source"].lower().endswith(".pdf"):
        with st.spinner(say("passage.picture", page=page, name=markup.plain(name))):
            _picture(citation, collection, name)


def _picture(citation: Json, collection: str, name: str) -> None:
    """The page, if the service has the file still; the text is there in any case."""
    say, page = state.say(), citation["page"]
    marks = [quote[:_MARK] for quote in quotes(citation)[:_MARKS]]
    try:
        picture, found = state.service().picture(collection, citation["document_id"], page, marks)
    except ServiceError as error:
        if error.code in AWAY:
            raise
        return
    st.image(picture, alt=say("passage.picture", page=page, name=name), width="stretch")
    if marks and not found:
        st.caption(say("passage.not_marked"))
