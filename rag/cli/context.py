"""What the commands share: options, settings, output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rag.errors import InputError

if TYPE_CHECKING:
    from rag.app import App
    from rag.settings import Loaded
    from rag.types import Scalar

F = TypeVar("F", bound=Callable[..., Any])

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
where_option = click.option(
    "--where", help="""Filter in JSON, such as '{"year": {"$gte": 2024}}'."""
)
top_k_option = click.option("--top-k", type=click.IntRange(min=1), help="How many passages to use.")
store_option = click.option("--store", help="Kind of vector store, such as faiss.")


def collection_options(command: F) -> F:
    """--collection and --store."""
    return click.option("--collection", help="Name of the collection.")(store_option(command))


def search_options(command: F) -> F:
    """How to search; see `rag.retrieve.SearchOptions`."""
    for option in (
        click.option("--expand", type=click.IntRange(0, 10), help="Neighbours of each passage."),
        click.option("--diversity", type=click.FloatRange(0, 1), help="Prefer hits that differ."),
        click.option("--rerank/--no-rerank", default=None, help="Use the reranker, if one is set."),
        click.option("--mode", type=click.Choice(["hybrid", "dense", "keyword"])),
    ):
        command = option(command)
    return command


def load_settings(context: click.Context, values: dict[str, Any]) -> Loaded:
    """The settings, with `values` of this command above all others."""
    from rag.settings import load

    given: dict[str, Any] = context.obj["values"]
    return load({**given, **values}, context.obj["config"])


def app_of(context: click.Context, collection: str | None, store: str | None) -> App:
    """The application, closed when the command ends."""
    from rag import terminal
    from rag.app import App

    chosen = {"collection": collection, "store": store}
    values = {name: value for name, value in chosen.items() if value is not None}
    app = App(load_settings(context, values).settings, terminal.say)
    context.call_on_close(app.close)
    if app.settings.store == "memory":
        terminal.say("warning: the memory store is empty again when this command ends")
    return app


def path(text: str) -> Path:
    """A path; not the current folder for "", which an unset variable in a script becomes."""
    if not text:
        raise InputError("a path is empty", "name a file or a folder, such as ./docs")
    return Path(text)


def pair(text: str, option: str) -> tuple[str, str]:
    """NAME=VALUE as a pair."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"{option} {text!r} is not NAME=VALUE", "write it like lang=en")
    return key, value


def scalar(text: str) -> Scalar:
    """A number or truth value if it is written like one in JSON, otherwise text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str | int | float) else text


def listed(text: str) -> Any:
    """A list or an object if it is written like one in JSON, otherwise text."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def confirm(yes: bool, question: str) -> None:
    """Ask before data is deleted."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("this deletes data and nobody can be asked", "add --yes")
    click.confirm(question, abort=True)


def info_json(info: Any) -> dict[str, Any]:
    """A collection or backend as JSON can hold it."""
    return {**asdict(info), "capabilities": sorted(info.capabilities)}


def print_json(value: Any, indent: int | None = 2) -> None:
    """JSON on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent, default=str))
