"""The page: its parts, and which of them is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from ui import chat, documents, evaluation, sidebar, state
from ui.choices import Choices
from ui.client import ServiceError
from ui.guard import guarded

_HERE = Path(__file__).parent
_PARTS: dict[str, tuple[Callable[[Choices], None], str]] = {
    "chat": (chat.show, ":material/forum:"),
    "documents": (documents.show, ":material/folder_open:"),
    "evaluation": (evaluation.show, ":material/monitoring:"),
}


def main() -> None:
    """Show the part that the address names."""
    # A picture of ours: emoji and symbols would be fetched from elsewhere.
    st.set_page_config(page_title="rag", page_icon=str(_HERE / "icon.png"), layout="wide")
    st.html(_HERE / "page.css")
    sidebar.language()
    say = state.say()
    pages = [
        st.Page(_part(show), title=say(f"pages.{name}"), url_path=name, icon=icon, default=n == 0)
        for n, (name, (show, icon)) in enumerate(_PARTS.items())
    ]
    st.navigation(pages, position="top").run()


def _part(show: Callable[[Choices], None]) -> Callable[[], None]:
    @guarded
    def part() -> None:
        try:
            choices = sidebar.show()
        except ServiceError:
            if show is chat.show:
                chat.kept()
            raise
        show(choices)

    return part
