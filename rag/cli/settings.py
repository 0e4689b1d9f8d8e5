"""`rag models` and `rag config`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rag.cli.context import as_json_option, load_settings, path, print_json


@click.group()
def models() -> None:
    """Fetch the weights of models."""


@models.command("pull")
@click.argument("name", required=False)
@click.pass_context
def models_pull(context: click.Context, name: str | None) -> None:
    """Fetch a model and verify it; by default the embedder of the settings."""
    from rag import models as weights
    from rag import terminal

    settings = load_settings(context, {}).settings
    name = name or settings.embedder.model
    folder = weights.pull(name, settings.models_dir, terminal.say)
    click.echo(f"{name} is in {folder} (sha256 {weights.weights_sha256(folder)})")


@click.group()
def config() -> None:
    """The settings in use."""


@config.command("show")
@as_json_option
@click.pass_context
def config_show(context: click.Context, as_json: bool) -> None:
    """Every setting: its value and where that comes from. Secrets are masked."""
    from rag import terminal

    loaded = load_settings(context, {})
    if as_json:
        print_json({n: {"value": v, "from": o} for n, v, o in loaded.rows()})
    else:
        terminal.table(("setting", "value", "from"), list(loaded.rows()))
    for name in loaded.unknown(os.environ):
        terminal.say(f"{name} is set in the environment and names no setting")


@config.command("templates")
@click.argument("folder", type=path)
def config_templates(folder: Path) -> None:
    """Write the texts of the prompts into FOLDER, to be changed there.

    Set answer.templates to FOLDER to have them used. Files that are there already are kept.
    """
    from rag import templates, terminal
    from rag.errors import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in templates.NAMES:
            if not (folder / name).exists():
                (folder / name).write_text((templates.FOLDER / name).read_text("utf-8"), "utf-8")
                terminal.say(f"wrote {folder / name}")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error})", "name another folder") from error
