"""`rag serve`."""

from __future__ import annotations

from typing import Any

import click

from rag.cli.context import load_settings, store_option


@click.command()
@click.option("--host", help="Address to listen on (service.host, by default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (service.port); 0 is a free one.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that answer.")
@click.option("--collection", help="Where a request names none.")
@store_option
@click.option("--without-keys", is_flag=True, default=None, help="Let everybody in.")
@click.pass_context
def serve(
    context: click.Context, /, collection: str | None, store: str | None, **given: Any
) -> None:
    """Answer over HTTP: POST /query and more; see /docs there."""
    from rag import plugins, terminal

    plugins.require("serve", "fastapi", "uvicorn", "prometheus_client", "structlog", "limits")
    from rag.service.server import serve as run

    values = {"collection": collection, "store": store}
    values |= {f"service.{name}": value for name, value in given.items()}
    chosen = {name: value for name, value in values.items() if value is not None}
    run(load_settings(context, chosen).settings, terminal.say)
