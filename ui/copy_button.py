"""A button that copies a text: Streamlit has one for code alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import streamlit as st

# Without https a page of another machine has no clipboard, but can have the selection copied.
_SCRIPT = """
export default ({ parentElement, data }) => {
  const button = parentElement.querySelector("button");
  button.textContent = data.label;
  button.onclick = async () => {
    const text = document.createElement("textarea");
    text.value = data.text;
    text.style.position = "fixed";
    text.style.opacity = "0";
    document.body.append(text);
    text.select();
    try {
      if (navigator.clipboard) await navigator.clipboard.writeText(data.text);
      else document.execCommand("copy");
      button.textContent = data.done;
    } finally {
      text.remove();
      button.focus();
    }
  };
};
"""
_STYLE = """
button {
  font: inherit; font-size: .875rem; color: inherit; background: none; cursor: pointer;
  border: 1px solid transparent; border-radius: var(--st-button-radius, .5rem);
  min-height: 2.5rem; padding: .25rem .5rem;
}
button:hover, button:focus-visible { color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); }
"""


@cache
def _component() -> Any:
    return st.components.v2.component(
        "copy_button", html='<button type="button"></button>', css=_STYLE, js=_SCRIPT
    )


def copy_button(text: str, label: str, done: str, key: str) -> None:
    """Copies `text`, and says `done` then."""
    _component()(data={"text": text, "label": label, "done": done}, key=key, width="content")
