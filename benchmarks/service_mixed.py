"""Mixed load on `rag serve` while Redis and the generator are killed and come back.

    python benchmarks/service_mixed.py [--minutes 10] [--generator-url http://127.0.0.1:8000/v1]

Two tenants ask, search, stream, leave streams in the middle, upload and delete, all at once; the
clients are in this process, the service in its own. Redis (apt install redis-server) holds the
cache and the limits of rate; answers are written by SmolLM2-135M in a server of llama.cpp. Each is
killed and restarted twice. With --generator-url another server writes, and is left alone.

Exit status 1 if an acknowledged upload is lost, a tenant is shown what is another's, deleted or
replaced, a request ends otherwise than with 2xx or with 429 or 503 and Retry-After, or the memory
of the service (resident, median) differs by more than 5 % between the second and the last third.
Under 5 minutes memory is only printed: the service is not warm by then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

# The script's own folder would make `stores` and `service` the scripts there.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from patient_client import PatientClient, Tally
from redis_server import RedisServer, redis_server
from servers import MODEL, llama_server
from service import Service, new_key, service
from shelf import TENANTS
from tenant import Tenant

KILLS = 2  # of each
WARM_MINUTES = 5
FLAT = 0.05
DEADLINE_S = 60
SETTINGS = {
    "generator.max_tokens": 24,
    "generator.breaker_reset_s": 2,
    "service.rate_limit": "15/second",
    "service.address_limit": "",
    "service.deadline_s": DEADLINE_S,
}
KINDS = ("upload", "delete", "query", "search", "stream", "stream left")


class LanguageModel:
    """A server of llama.cpp on a port that it keeps."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._running = ExitStack()

    def start(self) -> None:
        """Start it; returns once it answers."""
        self._running.enter_context(llama_server("chat", self._port))

    def kill(self) -> None:
        """End it in the midst of what it writes."""
        self._running.close()


async def disturb(parts: list[RedisServer | LanguageModel], seconds: float) -> None:
    """Kill and restart the parts in turn, KILLS times each, in so many seconds."""
    pause = seconds / (2 * KILLS * len(parts) + 1)
    for part in parts * KILLS:
        await asyncio.sleep(pause)
        await asyncio.to_thread(part.kill)
        await asyncio.sleep(pause)
        await asyncio.to_thread(part.start)
    await asyncio.sleep(pause)


async def watch(pid: int, going: Callable[[], bool]) -> list[float]:
    """The resident memory of a process in MB, each second."""
    seen = []
    while going():
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        seen.append(int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        await asyncio.sleep(1)
    return seen


async def load(
    running: Service, parts: list[RedisServer | LanguageModel], seconds: float, tally: Tally
) -> list[float]:
    """Let both tenants live for so long; returns the memory of the service meanwhile."""
    clients, tenants = [], []
    for name in TENANTS:
        options = ("--scope", "read", "--scope", "write", "--tenant", f'{{"tenant": "{name}"}}')
        key = new_key(running.data_dir, *options)
        clients.append(PatientClient(running.url, key, DEADLINE_S + 30, tally))
        tenants.append(Tenant(name, clients[-1], tally))
    for tenant in tenants:
        await tenant.begin()
    disturbing = asyncio.create_task(disturb(parts, seconds))

    def going() -> bool:
        return not disturbing.done()

    watching = asyncio.create_task(watch(running.process.pid, going))
    await asyncio.gather(*(tenant.live(going) for tenant in tenants))
    await disturbing
    for tenant, client in zip(tenants, clients, strict=True):
        await tenant.end()
        await client.aclose()
    return await watching


def lines(tally: Tally) -> Iterator[str]:
    """The table, and what else was counted."""
    yield "| request | replies | p50, ms | p99, ms | by status |"
    yield "|---|---|---|---|---|"
    for kind, seconds in tally.seconds.items():
        ordered = sorted(seconds)
        p50, p99 = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
        statuses = ", ".join(f"{s}: {n}" for s, n in sorted(tally.statuses[kind].items()))
        yield f"| {kind} | {len(ordered)} | {p50 * 1e3:.0f} | {p99 * 1e3:.0f} | {statuses} |"
    yield ""
    for what, count in tally.seen.items():
        yield f"{what}: {count}"


def main() -> None:
    """Start everything, let it run, say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--generator-url", default="")
    options = parser.parse_args()
    tally, started = Tally(), time.monotonic()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        redis = opened.enter_context(redis_server())
        parts: list[RedisServer | LanguageModel] = [redis]
        settings = {**SETTINGS, "cache.url": redis.url, "generator.url": options.generator_url}
        if not options.generator_url:
            model = LanguageModel()
            opened.callback(model.kill)
            model.start()
            parts.append(model)
            settings |= {"generator.url": model.url, "generator.model": MODEL}
        data = folder / "data"
        new_key(data, "--scope", "admin")  # from the start, so that nobody is let in without
        running = opened.enter_context(service(data, settings=settings))
        memory = asyncio.run(load(running, parts, options.minutes * 60, tally))
    for line in lines(tally):
        print(line)
    third = len(memory) // 3
    before, after = statistics.median(memory[third : 2 * third]), statistics.median(memory[-third:])
    print(
        f"killed and restarted: {', '.join(type(part).__name__ for part in parts)}, {KILLS} times"
    )
    print(
        f"memory of the service: {before:.0f} MB, then {after:.0f} MB ({after / before - 1:+.1%})"
    )
    print(f"{time.monotonic() - started:.0f} s in all")
    wrong = [*tally.wrong]
    wrong += [f"no {kind} succeeded" for kind in KINDS if not succeeded(tally, kind)]
    if options.minutes >= WARM_MINUTES and abs(after / before - 1) > FLAT:
        wrong.append(f"the memory of the service is not flat within {FLAT:.0%}")
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    print(f"wrong: {len(wrong)}")
    sys.exit(bool(wrong))


def succeeded(tally: Tally, kind: str) -> bool:
    """Whether a request of that kind had what it asked for."""
    return any(status.startswith("2") for status in tally.statuses[kind])


if __name__ == "__main__":
    main()
