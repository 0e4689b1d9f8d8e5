"""The conversation: a question, the answer as it is written, and where it comes from."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import streamlit as st

from ui import markup, passage, state, why
from ui.choices import Choices
from ui.client import Json, ServiceError
from ui.conversation import Exchange, copied
from ui.copy_button import copy_button
from ui.frames import frames

_FRAME_S = 0.05  # how soon a click on "stop" is seen
_ASKED = "asked"  # a question that waits until the service can be asked
_YOU, _IT = ":material/person:", ":material/auto_stories:"
_RATINGS = ("down", "up")  # as st.feedback numbers its thumbs


def show(choices: Choices) -> None:
    """The part of the page."""
    asked = state.conversation().exchanges
    # Taken as soon as it is sent: what comes before this may fail, and must not lose it.
    st.chat_input(state.say()("chat.placeholder"), key="question", on_submit=_submitted)
    question = st.session_state.pop(_ASKED, None)
    if question:
        asked.append(Exchange(question, choices))
    if asked:
        _tools()
    else:
        _welcome(choices)
    for n, exchange in enumerate(asked):
        with st.chat_message("user", avatar=_YOU):
            st.html(markup.verbatim(exchange.question))
        with st.chat_message("assistant", avatar=_IT):
            if exchange.begun:
                _outcome(n, exchange, choices if n == len(asked) - 1 else None)
            else:
                _answer_now(exchange)


def _submitted() -> None:
    question = st.session_state["question"]
    if question and question.strip():
        st.session_state[_ASKED] = question


def kept() -> None:
    """What was asked and answered, to read while the service cannot be asked."""
    for exchange in state.conversation().exchanges:
        with st.chat_message("user", avatar=_YOU):
            st.html(markup.verbatim(exchange.question))
        text = exchange.answer["answer"] if exchange.answer else exchange.text
        if text:
            with st.chat_message("assistant", avatar=_IT):
                st.html(markup.answer(text))


def _welcome(choices: Choices) -> None:
    say, service = state.say(), state.service()
    st.title(say("chat.title"))
    name = markup.plain(choices.collection)
    try:
        held = service.collection(choices.collection)["chunks"]
    except ServiceError as error:
        if error.code != "unknown_collection":
            raise
        held = 0
    st.markdown(say("chat.empty" if held else "chat.no_documents", collection=name))


def _tools() -> None:
    say, conversation = state.say(), state.conversation()
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button(say("chat.new"), icon=":material/add_comment:", type="tertiary"):
            state.forget_conversation()
            st.rerun()
        with st.popover(say("chat.export"), icon=":material/download:", type="tertiary"):
            st.download_button(
                say("chat.export_markdown"),
                lambda: conversation.to_markdown(say),
                "conversation.md",
                "text/markdown",
                on_click="ignore",
            )
            st.download_button(
                say("chat.export_json"),
                conversation.to_json,
                "conversation.json",
                "application/json",
                on_click="ignore",
            )


def _answer_now(exchange: Exchange) -> None:
    """Ask, and show the answer as it comes. Leaving this in the middle stops the generation."""
    say, body, below = state.say(), st.empty(), st.empty()
    query = exchange.choices.query(exchange.question, state.conversation().turns(exchange))
    below.button(say("chat.stop"), icon=":material/stop_circle:", key="stop")
    exchange.stopped = True  # unless it comes to its end
    started = time.monotonic()
    stream = state.service().ask(query, fresh=exchange.fresh)
    try:
        with closing(frames(stream, _FRAME_S)) as steps:
            for events in steps:
                for event in events:
                    _take(exchange, *event)
                # Shown anew in each step, also unchanged: here Streamlit sees that it is to stop.
                if exchange.text:
                    body.html(markup.answer(exchange.text))
                else:
                    seconds = f"{time.monotonic() - started:.0f}"
                    body.caption(say("chat.searching", seconds=seconds))
    except ServiceError as error:
        if error.code == "unreachable":  # it was not asked, and is once the service is back
            exchange.stopped = False
            raise
        exchange.problem = (
            say("chat.no_documents", collection=markup.plain(exchange.choices.collection))
            if error.code == "unknown_collection"
            else state.in_words(error)
        )
    exchange.stopped = False
    st.rerun()


def _take(exchange: Exchange, name: str, data: Json) -> None:
    if name == "token":
        exchange.text += data["text"]
    elif name == "done":
        exchange.answer = data


def _outcome(n: int, exchange: Exchange, choices: Choices | None) -> None:
    """What came of a question. With `choices`, for the last, it can be asked anew with these."""
    say = state.say()
    if exchange.answer is not None:
        _answer(exchange, exchange.answer)
    else:
        if exchange.text:
            st.html(markup.answer(exchange.text))
        if exchange.problem:
            st.error(exchange.problem, icon=":material/error:")
        else:
            st.caption(f":material/stop_circle: {say('chat.stopped')}")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if exchange.answer is not None:
            text = copied(exchange.answer)
            copy_button(text, say("chat.copy"), say("chat.copied"), f"copy/{exchange.id}")
        if choices and st.button(
            say("chat.regenerate"),
            icon=":material/refresh:",
            type="tertiary",
            key=f"anew/{exchange.id}",
        ):
            asked = state.conversation().exchanges
            asked[n] = Exchange(exchange.question, choices, fresh=True)
            st.rerun()
        if exchange.answer is not None:
            _rating(exchange)
    if exchange.answer is not None:
        why.show(exchange, exchange.answer)


def _answer(exchange: Exchange, answer: Json) -> None:
    say = state.say()
    if answer["abstained"]:
        st.info(
            f"**{say('chat.abstained')}** {say('chat.abstained_hint')}",
            icon=":material/search_off:",
        )
    else:
        st.html(markup.answer(answer["answer"]))
    if answer["degraded"]:
        parts = [say(f"chat.degraded_{part}") for part in answer["degraded"]]
        st.warning(say("chat.degraded", parts="; ".join(parts)), icon=":material/warning:")
    elif answer["notice"]:
        quoted = answer["model"] == "extractive"
        st.caption(say("chat.not_written") if quoted else markup.plain(answer["notice"]))
    if answer["search"] not in ("", exchange.question):
        st.caption(say("chat.searched", question=markup.plain(answer["search"])))
    lacking = [one["text"] for one in answer["statements"] if not one["supported"]]
    if lacking and not answer["abstained"]:
        sentences = " ".join(f"“{markup.plain(text)}”" for text in lacking)
        st.caption(f":material/help: {say('chat.unsupported', sentences=sentences)}")
    if answer["citations"] and not answer["abstained"]:
        passage.chips(exchange.id, answer["citations"], exchange.choices.collection)


def _rating(exchange: Exchange) -> None:
    say, key = state.say(), f"rating/{exchange.id}"

    def rate(comment: str = "") -> None:
        thumb = st.session_state[key]
        if thumb is None:  # a second click takes it back, which the service does not know
            return
        rating = _RATINGS[thumb]
        try:
            state.service().feedback(_request(exchange), rating, comment)
        except ServiceError as error:
            st.toast(f"{say('chat.rate_failed')} {state.in_words(error)}", icon=":material/error:")
        else:
            exchange.rating = rating
            exchange.commented = bool(comment)

    st.feedback("thumbs", key=key, on_change=rate, persist_state="session")
    if exchange.rating:
        with (
            st.popover(say("chat.comment"), icon=":material/rate_review:", type="tertiary"),
            st.form(f"comment/{exchange.id}", border=False, clear_on_submit=True),
        ):
            comment = st.text_area(
                say("chat.rated"), max_chars=4_000, key=f"comment-text/{exchange.id}"
            )
            if st.form_submit_button(say("chat.comment_send")) and comment.strip():
                rate(comment)
                if exchange.commented:
                    st.toast(say("chat.comment_sent"), icon=":material/check:")


def _request(exchange: Exchange) -> str:
    answer: Any = exchange.answer
    return str(answer["request_id"])
