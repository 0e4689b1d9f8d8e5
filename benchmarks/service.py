"""`rag serve` beside its bare parts, all measured in the same run.

    python benchmarks/service.py [--chunks 10000] [--seconds 10] [--clients 32] [--rounds 3]

A made-up collection in FAISS, embedded by the default embedder; 1,000 different questions, 5
passages each. The load comes from wrk (apt install wrk), a process of its own, which shares the
machine's cores with the service. Each round measures everything once, one after the other; the
table has the medians of the rounds, because machines are noisy. Ratios are those within a round.

Except for "cached", the cache is off; evidence is asked of no question, so that all are answered.
"bare route" is FastAPI alone, with the service's model of a request and a constant answer of the
same size, under the same settings of uvicorn. "cold" is a service that was just started and has
read and quoted no passage yet; "warm" has been asked every question once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The script's own folder would make `stores` and `service` the scripts there.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from http_client import client
from made_up import fill, questions
from service import service
from wrk import Wrk

from rag.app import App
from rag.retrieve import Mode, Retriever, SearchOptions
from rag.service.schemas import QueryIn
from rag.settings import load

MODES: tuple[Mode, ...] = ("dense", "hybrid")
QUESTIONS, ALONE = 1_000, 200
COLD_S = 5  # in longer ones every passage has been read, and they are warm
SETTINGS = {"service.rate_limit": "", "service.address_limit": "", "answer.min_evidence": 0}
UNCACHED = {**SETTINGS, "cache.enabled": False}
TARGETS = {
    "/search dense, 1 client, p50 over embed + search, ms": ("<=", 4),
    "/search dense, clients / 1 client": (">=", 2.5),
    "/search hybrid, clients / 1 client": (">=", 2.5),
    "/search dense, clients, p99 / p50": ("<=", 10),
    "/search hybrid, clients, p99 / p50": ("<=", 10),
    "/query dense, warm, of /search": (">=", 0.7),
    "/query hybrid, warm, of /search": (">=", 0.7),
    "/query cached, requests/s": (">=", 1_500),
    "/query cached, of the bare route": (">=", 0.8),
}
EITHER = ("/query cached, requests/s", "/query cached, of the bare route")  # one of them will do


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds, what it returned)."""
    started = time.perf_counter()
    result = call()
    return (time.perf_counter() - started) * 1000, result


def in_process(retriever: Retriever, asked: Sequence[str], mode: Mode) -> dict[str, float]:
    """Medians of what a search is made of, without a service."""
    embed, search, whole = [], [], []
    options = SearchOptions(mode)
    for question in asked:
        took, vector = timed(lambda q=question: retriever.embedder.embed_queries([q]))  # type: ignore[misc]
        embed.append(took)
        search.append(timed(lambda v=vector: retriever.store.search(v, 10))[0])  # type: ignore[misc]
        whole.append(timed(lambda q=question: retriever.search(q, 5, None, options))[0])  # type: ignore[misc]
    return {
        f"bare embed, before {mode}, ms": statistics.median(embed),
        f"bare search, k=10, before {mode}, ms": statistics.median(search),
        f"Retriever.search {mode}, in process, ms": statistics.median(whole),
    }


def bare_route(listening: socket.socket, reply: bytes) -> None:
    """Serve FastAPI with nothing behind it."""
    import uvicorn
    from fastapi import FastAPI, Response

    api = FastAPI()

    @api.post("/query")
    async def query(body: QueryIn) -> Response:
        return Response(reply, media_type="application/json")

    config = uvicorn.Config(api, log_config=None, access_log=False, server_header=False)
    uvicorn.Server(config).run([listening])


@contextmanager
def bare_server(reply: bytes) -> Iterator[str]:
    """The URL of `bare_route` in a process of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        arguments = (listening, reply)
        process = multiprocessing.get_context("spawn").Process(target=bare_route, args=arguments)
        process.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


@dataclass(frozen=True)
class Bench:
    """What is measured, and by what load."""

    wrk: Wrk
    retriever: Retriever
    uncached: str
    cached: str
    bare: str
    fresh: Callable[[], AbstractContextManager[str]]
    asked: list[str]
    seconds: float
    clients: int

    def round(self) -> dict[str, float]:
        """Every figure once."""
        seen: dict[str, float] = {}
        for mode in MODES:
            seen |= in_process(self.retriever, self.asked[:ALONE], mode)
            seen |= self._alone(mode, seen)
            seen |= self._together(mode, seen)
        requests = bodies(self.asked, "hybrid")
        bare = self.wrk.post(f"{self.bare}/query", requests, self.clients, self.seconds)
        cached = self.wrk.post(f"{self.cached}/query", requests, self.clients, self.seconds)
        seen["bare route, requests/s"] = bare.rate
        seen["/query cached, requests/s"] = cached.rate
        seen["/query cached, of the bare route"] = cached.rate / bare.rate
        return seen

    def _alone(self, mode: Mode, seen: dict[str, float]) -> dict[str, float]:
        load = self.wrk.post(f"{self.uncached}/search", bodies(self.asked, mode), 1, self.seconds)
        embed = seen[f"bare embed, before {mode}, ms"]
        search = seen[f"bare search, k=10, before {mode}, ms"]
        return {
            f"/search {mode}, 1 client, p50, ms": load.p50,
            f"/search {mode}, 1 client, p50 over embed + search, ms": load.p50 - embed - search,
            f"/search {mode}, 1 client, requests/s": load.rate,
        }

    def _together(self, mode: Mode, seen: dict[str, float]) -> dict[str, float]:
        requests = bodies(self.asked, mode)
        clients, seconds = self.clients, self.seconds
        search = self.wrk.post(f"{self.uncached}/search", requests, clients, seconds)
        query = self.wrk.post(f"{self.uncached}/query", requests, clients, seconds)
        with self.fresh() as url:
            with client(url) as api:  # opens the collection
                api.post("/search", json=requests[0]).raise_for_status()
            cold = self.wrk.post(f"{url}/query", requests, clients, COLD_S)
        alone = seen[f"/search {mode}, 1 client, requests/s"]
        return {
            f"/search {mode}, clients, requests/s": search.rate,
            f"/search {mode}, clients / 1 client": search.rate / alone,
            f"/search {mode}, clients, p50, ms": search.p50,
            f"/search {mode}, clients, p99, ms": search.p99,
            f"/search {mode}, clients, p99 / p50": search.p99 / search.p50,
            f"/query {mode}, warm, clients, requests/s": query.rate,
            f"/query {mode}, warm, of /search": query.rate / search.rate,
            f"/query {mode}, cold, clients, requests/s": cold.rate,
            f"/query {mode}, cold, of /search": cold.rate / search.rate,
        }


def bodies(asked: Sequence[str], mode: Mode) -> list[dict[str, str]]:
    """The requests."""
    return [{"question": question, "mode": mode} for question in asked]


def warm(url: str, requests: Sequence[dict[str, str]]) -> bytes:
    """Ask all once; returns an answer."""
    with client(url) as api, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: api.post("/query", json=body), requests))
        for answer in answers:
            answer.raise_for_status()
        assert not any(answer.json()["abstained"] for answer in answers)
        return answers[-1].content


def lines(rounds: Sequence[dict[str, float]], clients: int) -> Iterator[str]:
    """The table."""
    yield "| | median | of rounds | target | |"
    yield "|---|---|---|---|---|"
    medians = {name: statistics.median(seen[name] for seen in rounds) for name in rounds[0]}
    met = {
        name: medians[name] <= limit if sign == "<=" else medians[name] >= limit
        for name, (sign, limit) in TARGETS.items()
    }
    met |= dict.fromkeys(EITHER, any(met[name] for name in EITHER))
    for name, median in medians.items():
        each = ", ".join(f"{seen[name]:.4g}" for seen in rounds)
        target = "{} {}".format(*TARGETS[name]) if name in TARGETS else ""
        said = "" if not target else "met" if met[name] else "missed"
        title = name.replace("clients", f"{clients} clients")
        yield f"| {title} | {median:.4g} | {each} | {target} | {said} |"


def main() -> None:
    """Fill a collection, start the servers, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        try:
            wrk = Wrk(folder)
        except RuntimeError as error:
            sys.exit(str(error))
        settings = load({"data_dir": folder / "data"}).settings
        app = opened.enter_context(closing(App(settings)))
        fill(app, options.chunks)

        @contextmanager
        def served(values: dict[str, Any]) -> Iterator[str]:
            models = {"RAG_MODELS_DIR": str(settings.models_dir)}
            with service(settings.data_dir, settings=values, **models) as running:
                yield running.url

        uncached = opened.enter_context(served(UNCACHED))
        cached = opened.enter_context(served(SETTINGS))
        asked = questions(QUESTIONS)
        for mode in MODES:
            warm(uncached, bodies(asked, mode))
        reply = warm(cached, bodies(asked, "hybrid"))
        bench = Bench(
            wrk,
            opened.enter_context(app.retriever()),
            uncached,
            cached,
            opened.enter_context(bare_server(reply)),
            lambda: served(UNCACHED),
            asked,
            options.seconds,
            options.clients,
        )
        rounds = [bench.round() for _ in range(options.rounds)]
    print(
        f"{options.chunks:,} chunks, {options.seconds:g} s each; "
        f"service and load share {os.cpu_count()} cores\n"
    )
    for line in lines(rounds, options.clients):
        print(line)


if __name__ == "__main__":
    main()
