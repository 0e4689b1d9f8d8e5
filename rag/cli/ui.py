"""`rag ui`."""

from __future__ import annotations

from typing import Any

import click

from rag.cli.context import collection_options, load_settings


@click.command()
@click.option("--host", help="Address to listen on (ui.host, by default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (ui.port); 0 is a free one.")
@click.option("--api-url", metavar="URL", help="Ask the service there, instead of one of its own.")
@click.option(
    "--api-key", metavar="KEY", help="Its key for all who open the page; better RAG_UI_API_KEY."
)
@click.option("--without-keys", is_flag=True, default=None, help="Let everybody in.")
@click.option("--browser/--no-browser", default=None, help="Open it, where there is a screen.")
@collection_options
@click.pass_context
def ui(context: click.Context, /, collection: str | None, store: str | None, **given: Any) -> None:
    """Open the chat page: ask, see why, and tend a collection."""
    from rag import plugins, terminal

    needed = ("streamlit", "fastapi", "uvicorn", "prometheus_client", "structlog", "limits")
    plugins.require("ui", *needed)
    from ui.launch import launch

    values = {"collection": collection, "store": store}
    values |= {f"ui.{name}": value for name, value in given.items()}
    chosen = {name: value for name, value in values.items() if value is not None}
    launch(load_settings(context, chosen).settings, terminal.say)
