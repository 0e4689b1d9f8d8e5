"""`rag mcp`."""

from __future__ import annotations

from typing import Any

import click

from rag.cli.context import collection_options, load_settings
from rag.errors import InputError


@click.command()
@click.option("--http", is_flag=True, help="Listen for HTTP at /mcp, as `rag serve` does.")
@click.option("--host", help="Address to listen on (service.host, by default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (service.port); 0 is a free one.")
@collection_options
@click.pass_context
def mcp(
    context: click.Context, /, http: bool, host: str | None, port: int | None, **given: Any
) -> None:
    """Offer the tools `search` and `ask` to a client of the Model Context Protocol.

    Without --http the client starts this, and they speak over standard input and output.
    """
    from rag import plugins, terminal

    if not http and (host is not None or port is not None):
        raise InputError("--host and --port are of no use without --http", "add --http")
    plugins.require("mcp", "mcp", "fastapi", "prometheus_client", "structlog", "limits")
    values = {**given, "service.host": host, "service.port": port}
    chosen = {name: value for name, value in values.items() if value is not None}
    settings = load_settings(context, chosen).settings
    if http:
        from rag.service.server import serve

        serve(settings, terminal.say)
    else:
        from rag.service.mcp import serve_stdio

        serve_stdio(settings)
