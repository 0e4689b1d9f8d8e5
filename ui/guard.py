"""What is shown where something fails: never a trace, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import streamlit as st

from rag.service import logs
from ui import connection, state
from ui.client import AWAY, ServiceError

Given = ParamSpec("Given")

_RETRY_S = 2.0
_JUST_FAILED = "just_failed"


def guarded(show: Callable[Given, None]) -> Callable[Given, None]:
    """Show this; where the service fails, that it does, or the question for a key.

    Each part of the page, each dialog and each fragment is run on its own, and needs its own.
    """

    @wraps(show)
    def shown(*args: Given.args, **kwargs: Given.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except ServiceError as error:
            without_service(error)
        except Exception:  # a bug; what Streamlit uses to stop a script is no Exception
            logs.failed()
            st.error(state.say()("service.unexpected"), icon=":material/error:")

    return shown


def without_service(error: ServiceError) -> None:
    """What there is to do without the service: wait for it, or show it a key."""
    if error.code == "unauthenticated":
        _ask_for_key()
        return
    st.error(state.in_words(error), icon=":material/cloud_off:")
    if error.code in AWAY:
        st.session_state[_JUST_FAILED] = True
        st.fragment(_wait, run_every=_RETRY_S)()


def _ask_for_key() -> None:
    say = state.say()
    with st.form("key"):
        st.subheader(say("key.title"))
        if state.has_key():
            st.error(say("key.wrong"))
        key = st.text_input(say("key.label"), type="password", help=say("key.help"))
        if st.form_submit_button(say("key.enter"), type="primary"):
            state.use_key(key.strip())
            st.rerun()


def _wait() -> None:
    st.caption(state.say()("service.retrying"))
    if st.session_state.pop(_JUST_FAILED, False):  # at once would be as fast as it fails
        return
    if connection.current().service.ready():
        st.rerun()
