"""`rag engine`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rag.cli.context import as_json_option, load_settings, print_json
from rag.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag.engine.plan import Plan

    F = TypeVar("F", bound=Callable[..., Any])

_PORT = 8000
_HOST = "127.0.0.1"
_LOCAL = ("127.0.0.1", "localhost", "::1")


def _need_options(command: F) -> F:
    """What the engine is for; see `rag.engine.plan.Need`."""
    for option in (
        click.option("--name", help="Name that clients give, by default the model's own."),
        click.option(
            "--parameters", help="Size such as 7B, of a model that only the hub has.", default=""
        ),
        click.option(
            "--concurrency", type=click.IntRange(1, 1024), help="Answers at once (GPU 16, CPU 4)."
        ),
        click.option(
            "--context-tokens",
            type=click.IntRange(min=256),
            help="Tokens of prompt and answer (the model's, at most 8192).",
        ),
        click.option(
            "--model",
            required=True,
            help="Folder with config.json, .gguf file, or OWNER/NAME on the Hugging Face hub.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def engine() -> None:
    """Engines that run a language model: which one fits this machine, and starting it."""


@engine.command("recommend")
@_need_options
@as_json_option
def engine_recommend(
    model: str,
    context_tokens: int | None,
    concurrency: int | None,
    parameters: str,
    name: str | None,
    as_json: bool,
) -> None:
    """Engine, quantisation, GPUs and KV cache that fit, with the arithmetic and the command."""
    from rag import terminal
    from rag.engine import explain, fit, hardware, hub, launch, remedy

    machine = hardware.detect()
    size = hub.find(model, _parameters(parameters))
    need = _need(context_tokens, concurrency)
    found = fit.plans(machine, size, need)
    best = found[0] if found else None
    fits = best is not None and best.sequences > 0
    if not as_json:
        steps = explain.steps(best, size) if best else ()
        terminal.table(("", "", ""), [*explain.facts(machine, size), *steps])
        for line in machine.notes:
            terminal.write(f"note: {line}")
    if best is None or not fits:
        raise remedy.nowhere(machine, size, need, found)
    name = name or size.name
    # The `vllm` command of the package for CPUs does not start: it looks for another's metadata.
    python = "" if best.engine == "vllm" else "python"
    environment, command = explain.command(best, size, name, _HOST, _PORT, python)
    settings = explain.settings(best, name, f"{launch.url_of(_HOST, _PORT)}/v1")
    if as_json:
        print_json(
            {
                "hardware": {**asdict(machine), "cpu_flags": sorted(machine.cpu_flags)},
                "model": asdict(size),
                "plan": {**asdict(best), **_derived(best)},
                "summary": explain.summary(best, size),
                "arithmetic": [step._asdict() for step in explain.steps(best, size)],
                "considered": [explain.summary(plan, size) for plan in _distinct(found)],
                "environment": environment,
                "command": command,
                "settings": settings,
                "notes": explain.notes(best, size),
            }
        )
        return
    terminal.write(f"\nrecommended: {explain.summary(best, size)}")
    for plan in _distinct(found)[1:]:
        if plan.sequences:
            terminal.write(f"also fits:   {explain.summary(plan, size)}")
    for line in explain.notes(best, size):
        terminal.write(f"note: {line}")
    terminal.write(f"\n{explain.shell(environment, command)}\n\nrag.toml:\n{settings}")


@engine.command("serve")
@_need_options
@click.option("--host", default=_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", default=_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option("--python", default="", help="Interpreter of the environment that has vLLM.")
@click.option("--api-key-env", metavar="NAME", help="Variable with the key that clients must give.")
@click.option("--log", type=Path, help="File for the engine's log, by default standard error.")
@click.option("--dry-run", is_flag=True, help="Only print the command.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def engine_serve(
    context: click.Context,
    model: str,
    context_tokens: int | None,
    concurrency: int | None,
    parameters: str,
    name: str | None,
    host: str,
    port: int,
    python: str,
    api_key_env: str | None,
    log: Path | None,
    dry_run: bool,
    extra: tuple[str, ...],
) -> None:
    """Start the engine that `rag engine recommend` names. What comes after -- is for vLLM."""
    from rag import terminal
    from rag.engine import explain, fit, hardware, hub, launch, remedy

    machine = hardware.detect()
    size = hub.find(model, _parameters(parameters))
    need = _need(context_tokens, concurrency)
    found = fit.plans(machine, size, need)
    if not found or not found[0].sequences:
        raise remedy.nowhere(machine, size, need, found)
    plan = found[0]
    llama = plan.engine == "llama.cpp"
    if llama and extra:
        raise InputError("llama.cpp takes no arguments after --", "leave them out")
    if llama:
        launch.check_llama_cpp()
    python = sys.executable if llama else launch.interpreter(python)
    environment, command = explain.command(plan, size, name or size.name, host, port, python)
    command += extra
    terminal.say(explain.summary(plan, size))
    for line in explain.notes(plan, size):
        terminal.say(f"note: {line}")
    if dry_run:
        terminal.write(explain.shell(environment, command))
        return
    launch.check_port(host, port)
    variable = "LLAMA_API_KEY" if llama else "VLLM_API_KEY"
    key = _key(context, api_key_env) or os.environ.get(variable, "")
    if not key and host not in _LOCAL:
        terminal.say(f"warning: whoever reaches {host}:{port} can use it; set --api-key-env")
    url = launch.url_of(host, port)
    started = time.monotonic()
    with ExitStack() as stack:
        file = stack.enter_context(log.open("ab", buffering=0)) if log else sys.stderr.buffer
        secret = {variable: key} if key else {}
        running = stack.enter_context(launch.Running(command, {**environment, **secret}, file))
        served = running.until_ready(url, key)
        if served:
            took = time.monotonic() - started
            terminal.write(f"ready at {url}/v1, model {served} ({took:.0f} s)")
            terminal.write(explain.settings(plan, served, f"{url}/v1"))
            if key:
                terminal.write("and the key in RAG_GENERATOR_API_KEY")
            sys.stdout.flush()
            running.until_end()
    terminal.say("the engine has ended")


def _need(context_tokens: int | None, concurrency: int | None) -> Any:
    from rag.engine.plan import Need

    return Need(context_tokens or 0, concurrency or 0)


def _parameters(text: str) -> int:
    from rag.engine.hub import parameters_in

    found = parameters_in(text)
    if text and not found:
        raise InputError(f"--parameters {text!r} is no size", "write it like 7B, 0.5B or 135M")
    return found


def _distinct(found: Sequence[Plan]) -> list[Plan]:
    """The best plan of each engine, quantisation and number of GPUs."""
    best = {(plan.engine, plan.quantization, len(plan.gpus)): plan for plan in reversed(found)}
    return [plan for plan in found if plan in best.values()]


def _derived(plan: Plan) -> dict[str, Any]:
    names = ("free", "kv_bytes", "sequences", "answers", "parallel")
    return {"tensor_parallel_size": len(plan.gpus) or 1, **{n: getattr(plan, n) for n in names}}


def _key(context: click.Context, variable: str | None) -> str:
    if variable is None:
        return load_settings(context, {}).settings.generator.api_key.get_secret_value().strip()
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"{variable} is not set", "put the key in it, or leave --api-key-env out")
    return key
