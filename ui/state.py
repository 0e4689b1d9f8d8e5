"""What a tab remembers between two runs of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from ui import connection, texts
from ui.client import Service
from ui.conversation import Conversation
from ui.texts import Texts

if TYPE_CHECKING:
    from ui.client import ServiceError

_KEY = "service_key"
LANGUAGE = "lang"


def conversation() -> Conversation:
    """What was asked in this tab."""
    if "conversation" not in st.session_state:
        st.session_state["conversation"] = Conversation()
    kept: Conversation = st.session_state["conversation"]
    return kept


def forget_conversation() -> None:
    """Begin a new one."""
    st.session_state["conversation"] = Conversation()


def language() -> str:
    """That which was chosen, otherwise that of the browser."""
    chosen = st.session_state.get(LANGUAGE)
    return chosen if chosen in texts.LANGUAGES else texts.of_browser(st.context.locale)


def say() -> Texts:
    """The texts in the language of this tab."""
    return texts.texts(language())


def service() -> Service:
    """The service, with the key of this tab if the page has none."""
    service = connection.current().service
    key = st.session_state.get(_KEY)
    return service.with_key(key) if key and not service.key else service


def use_key(key: str) -> None:
    """Ask with this key from now on; "" forgets it."""
    st.session_state[_KEY] = key


def has_key() -> bool:
    """Whether somebody entered a key here."""
    return bool(st.session_state.get(_KEY))


def in_words(error: ServiceError) -> str:
    """An error as Markdown, in the language of this tab as far as that goes."""
    from ui.markup import plain

    text = say()
    if error.code == "unreachable":
        return text("service.down", reason=plain(error.message))
    if error.code == "interrupted":
        return text("service.interrupted", reason=plain(error.message))
    if error.code == "no_service":
        return text("service.none", url=plain(error.message))
    if error.retry_after:
        return text("service.busy", seconds=plain(error.retry_after))
    hint = f" ({error.hint})" if error.hint else ""
    return plain(error.message + hint)
