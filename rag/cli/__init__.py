"""The command line. Heavy packages are imported by the commands that need them, not here."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from rag import __version__
from rag.cli import (
    answering,
    asking,
    collections,
    documents,
    engine,
    evaluating,
    feedback,
    keys,
    mcp,
    searching,
    serving,
    settings,
    stores,
    tuning,
    ui,
)
from rag.cli.context import listed, pair
from rag.errors import EXIT_CODES, RagError, RagWarning

_EPILOG = "\b\nExit status:\n" + "\n".join(f"  {c:>3}  {text}" for c, text in EXIT_CODES.items())


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="rag")
@click.option(
    "--config", type=Path, envvar="RAG_CONFIG", help="Settings file, by default rag.toml."
)
@click.option("--data-dir", type=Path, help="Folder that holds all data (RAG_DATA_DIR).")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any setting, for this run; lists and objects in JSON.",
)
@click.option("--debug", is_flag=True, envvar="RAG_DEBUG", help="Show the trace of an error.")
@click.pass_context
def cli(
    context: click.Context,
    config: Path | None,
    data_dir: Path | None,
    assignments: Sequence[str],
    debug: bool,
) -> None:
    """Answers from your own documents, with the source of each sentence."""
    values: dict[str, Any] = dict(pair(text, "--set") for text in assignments)
    values = {name: listed(text) for name, text in values.items()}
    if data_dir is not None:
        values["data_dir"] = data_dir
    context.obj = {"config": config, "values": values}


for command in (
    asking.ingest,
    asking.ask,
    answering.answer,
    searching.search,
    evaluating.evaluate,
    tuning.tune,
    collections.collections,
    documents.documents,
    stores.stores,
    engine.engine,
    serving.serve,
    ui.ui,
    mcp.mcp,
    keys.keys,
    feedback.feedback,
    settings.models,
    settings.config,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("RAG_DEBUG"))
    try:
        result = cli.main(args=arguments, prog_name="rag", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        where = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "rag"
        )
        return _fail(f"{error.format_message()} See: {where} --help", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; what was done is kept, run it again to go on", 130)
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error.__context__ or error, BrokenPipeError):  # click exits upon one
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RagError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except Exception as error:  # a bug: the person gets a line, its trace is there for the asking
        if debug:
            raise
        reason = " ".join(str(error).split())[:200]
        return _fail(f"unexpected {type(error).__name__} ({reason}); add --debug for the trace", 1)


def run() -> None:
    """The console script `rag`."""
    warnings.showwarning = _show_warning
    sys.exit(main())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours in one line; those of libraries are for their authors, and `python -W` elsewhere."""
    if issubclass(category, RagWarning):
        from rag import terminal

        terminal.say(f"warning: {message}")


def _fail(message: str, status: int) -> int:
    from rag import terminal

    terminal.say(f"error: {message}")
    return status
