"""`rag keys`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from rag.cli.context import as_json_option, load_settings, print_json
from rag.errors import InputError

if TYPE_CHECKING:
    from rag.service.keys import Key, Keys


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that applications present to `rag serve`."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write", "admin"]),
    multiple=True,
    default=["read"],
    show_default=True,
    help="What the key may do; repeat it for several.",
)
@click.option(
    "--collection", "collections", multiple=True, help="For this one only; repeat it for several."
)
@click.option(
    "--tenant", help="""Filter that holds for all it sees, such as '{"tenant": "acme"}'."""
)
@click.option("--expires-days", type=click.IntRange(1, 36_500), help="Days until it expires.")
@as_json_option
@click.pass_context
def keys_create(
    context: click.Context,
    name: str,
    scopes: Sequence[str],
    collections: Sequence[str],
    tenant: str | None,
    expires_days: int | None,
    as_json: bool,
) -> None:
    """A new key for the application NAME, printed once."""
    from rag import terminal

    expires_at = None if expires_days is None else int(time.time()) + expires_days * 86_400
    key, presented = _keys(context).create(
        name, scopes, collections or None, _tenant(tenant), expires_at
    )
    if as_json:
        print_json({"key": presented, **_shown(key)})
    else:
        click.echo(presented)
    terminal.say(f"keep the key of {name!r} (id {key.id}) safe now, it is not shown again")


@keys.command("list")
@as_json_option
@click.pass_context
def keys_list(context: click.Context, as_json: bool) -> None:
    """Every key, the revoked and expired ones too."""
    from rag import terminal

    shown = [_shown(key) for key in _keys(context).list()]
    if as_json:
        print_json(shown)
        return
    terminal.table(
        ("id", "name", "scopes", "collections", "tenant", "created", "expires", "revoked"),
        [tuple(_text(value) for value in key.values()) for key in shown],
    )


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@click.pass_context
def keys_revoke(context: click.Context, key_id: str) -> None:
    """Let a key count no more, from the next request on."""
    _keys(context).revoke(key_id)
    click.echo(f"revoked {key_id}")


def _keys(context: click.Context) -> Keys:
    from rag.service.keys import Keys

    found = Keys(load_settings(context, {}).settings.data_dir / "service")
    context.call_on_close(found.close)
    return found


def _tenant(text: str | None) -> Any:
    """The filter as it is kept. One that filters nothing is a mistake: the key would see all."""
    from rag.filters import parse_json

    if text is not None and parse_json(text) is None:
        raise InputError("--tenant filters nothing", """write it like '{"tenant": "acme"}'""")
    return {} if text is None else json.loads(text)


def _shown(key: Key) -> dict[str, Any]:
    """What is shown of a key, in the order of the table; times in ISO 8601."""
    values = asdict(key)
    for name in ("created", "expires", "revoked"):
        at = values.pop(f"{name}_at")
        values[name] = None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
    return values


def _text(value: Any) -> str:
    """A value as a cell; what is not there is empty."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return ", ".join(value) if isinstance(value, tuple) else str(value or "")
