"""`rag stores`."""

from __future__ import annotations

from typing import Any

import click

from rag.cli.context import app_of, as_json_option, info_json, print_json, store_option


@click.group()
def stores() -> None:
    """The kinds of vector stores: what is installed, what answers."""


@stores.command("list")
@as_json_option
@click.pass_context
def stores_list(context: click.Context, as_json: bool) -> None:
    """Every kind of store, and what to install for those that are missing."""
    from rag import plugins, terminal

    rows = []
    for name in plugins.names("store"):
        plugin = plugins.BUILT_IN["store"].get(name)
        packages = plugins.versions(plugin) if plugin else {}
        missing = [package for package, version in packages.items() if not version]
        rows.append(
            {
                "store": name,
                "installed": not missing,
                "packages": packages,
                "install": plugin.command if plugin and missing else "",
            }
        )
    if as_json:
        print_json(rows)
        return
    terminal.table(("store", "", ""), [_row(row) for row in rows])


@stores.command("check")
@store_option
@as_json_option
@click.pass_context
def stores_check(context: click.Context, store: str | None, as_json: bool) -> None:
    """Connect to the store in use, and say what is there."""
    from rag import terminal

    app = app_of(context, None, store)
    info = {"store": app.settings.store, **info_json(app.backend.check())}
    info["collections"] = app.backend.collections()
    if as_json:
        print_json(info)
        return
    listed = {key: ", ".join(v) if isinstance(v, list) else v for key, v in info.items()}
    terminal.table(("", ""), list(listed.items()))


def _row(row: dict[str, Any]) -> tuple[str, str, str]:
    versions = " ".join(f"{package} {v}" for package, v in row["packages"].items() if v)
    return row["store"], "installed" if row["installed"] else row["install"], versions
