"""Figures for Prometheus: how many, how fast, how often a part failed, and what it cost.

With several worker processes, PROMETHEUS_MULTIPROC_DIR names an empty folder that they share, set
before this is imported: then each answer to a scrape holds the sum of all of them. What dead
workers counted stays in the sum; their gauges are dropped at the next scrape.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from rag.breaker import State
from rag.service.gpu import GpuCollector
from rag.settings import ServiceSettings
from rag.types import Answer

_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
_STAGES = ("embed", "search", "rerank", "rewrite", "prompt", "wait", "generate", "cite")
_STATES: Mapping[State, int] = {"closed": 0, "half-open": 1, "open": 2}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SAMPLE_S = 1.0


class Metrics:
    """The figures of one service. Nothing in it raises, and it is safe between threads."""

    def __init__(self, settings: ServiceSettings) -> None:
        """The cost is counted if `settings` has a price for 1,000 tokens."""
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rag_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"rag_{name}", text, labels, registry=registry, buckets=_SECONDS)

        self._requests = counter("requests_total", "Requests.", "route", "method", "status")
        self._request_seconds = histogram("request_seconds", "Time of a request.", "route")
        self._stage_seconds = histogram("stage_seconds", "Time of a part of an answer.", "stage")
        self._first_token = histogram("first_token_seconds", "Time to an answer's first piece.")
        self._tokens = counter("tokens_total", "Tokens, as the model counts them.", "kind")
        self._answers = counter("answers_total", "Answers made, those of the cache left out.")
        self._abstentions = counter("abstentions_total", "Answers that say: it is not there.")
        self._degraded = counter("degraded_total", "Answers that a part failed in.", "part")
        self._cached = counter("cache_requests_total", "Look-ups in caches.", "cache", "result")
        self._refused = counter("refused_total", "Requests that were not taken.", "reason")
        self._store_errors = counter("store_errors_total", "Failures of the vector store.")
        self._prices = (settings.price_prompt / 1000, settings.price_completion / 1000)
        if any(self._prices):
            self._cost = counter("cost_total", "Price of the tokens, in the currency of the price.")
        self._gauges = {
            "in_flight": self._gauge("in_flight", "Requests that are worked on."),
            "queue_depth": self._gauge("queue_depth", "Requests that wait for their turn."),
        }
        self._breakers = Gauge(
            "rag_breaker_state",
            "Whether a part is asked: 0 it is, 1 once as a trial, 2 it is left alone.",
            ["part"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._sampled: list[tuple[Gauge, Callable[[], float]]] = []
        # What is the same for all processes is read at a scrape, by the one that answers it.
        self._machine = CollectorRegistry()
        self._machine.register(GpuCollector())
        self._closed = threading.Event()
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._all = _Processes(Path(folder)) if folder else None
        if self._all:
            threading.Thread(target=self._keep_sampling, name="metrics", daemon=True).start()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"rag_{name}", text, registry=self._registry, multiprocess_mode="livesum")

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request is over. `route` is its template, or one word for all that have none."""
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def answered(self, answer: Answer) -> None:
        """An answer was made, not one from the cache, for which nothing was paid."""
        self.stages(answer.timings_ms)
        self._answers.inc()
        if answer.abstained:
            self._abstentions.inc()
        for part in answer.degraded:
            self._degraded.labels(part).inc()
        counted = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        self._tokens.labels("prompt").inc(max(0, counted[0]))
        self._tokens.labels("completion").inc(max(0, counted[1]))
        if any(self._prices):
            self._cost.inc(sum(max(0, n) * p for n, p in zip(counted, self._prices, strict=True)))

    def stages(self, timings_ms: Mapping[str, float]) -> None:
        """The times of an answer or a search; those that are sums of others are left out."""
        for stage in _STAGES:
            if stage in timings_ms:
                self._stage_seconds.labels(stage).observe(timings_ms[stage] / 1000)
        if "first_token" in timings_ms:
            self._first_token.observe(timings_ms["first_token"] / 1000)

    def cached(self, cache: str, result: str, times: int = 1) -> None:
        """A cache ("answers", "vectors") was asked: "hit", "miss" or "down"."""
        self._cached.labels(cache, result).inc(times)

    def refused(self, reason: str) -> None:
        """A request was not taken. `reason` is the code of its error."""
        self._refused.labels(reason).inc()

    def store_failed(self) -> None:
        """The vector store did not do what it was asked."""
        self._store_errors.inc()

    def gauges(self, values: Mapping[str, Callable[[], float]]) -> None:
        """What gives "in_flight" and "queue_depth" of this process, asked from another thread."""
        self._sampled += [(self._gauges[name], value) for name, value in values.items()]

    def breakers(self, states: Mapping[str, Callable[[], State]]) -> None:
        """What gives the state of the breaker of each part, asked from another thread."""
        for part, state in states.items():
            self._sampled.append((self._breakers.labels(part), _as_number(state)))

    def jobs(self, count: Callable[[], Mapping[str, int]]) -> None:
        """What gives the number of jobs in each state, of all processes together."""
        self._machine.register(_Jobs(count))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The answer to a scrape and its content type, OpenMetrics where `accept` asks for it.

        It reads files and asks the driver of the GPU: call it in a thread.
        """
        self._sample()
        try:
            encode, kind = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, kind = choose_encoder("")
        whole = CollectorRegistry()
        whole.register(self._all or self._registry)
        whole.register(self._machine)
        return encode(whole), kind

    def close(self) -> None:
        """End what keeps the gauges of this process up to date."""
        self._closed.set()

    def _sample(self) -> None:
        for gauge, value in self._sampled:
            with suppress(Exception):  # what is measured may be closed already
                gauge.set(value())

    def _keep_sampling(self) -> None:
        """Another process may be the one that is scraped."""
        while not self._closed.wait(_SAMPLE_S):
            self._sample()


def _as_number(state: Callable[[], State]) -> Callable[[], float]:
    return lambda: _STATES[state()]


class _Jobs(Collector):
    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        with suppress(Exception):
            jobs = GaugeMetricFamily("rag_jobs", "Ingestion jobs.", labels=["state"])
            for state, number in self._count().items():
                jobs.add_metric([state], number)
            yield jobs


class _Processes(Collector):
    """What all processes have counted, from the files that they keep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        for pid in {int(path.stem.rpartition("_")[2]) for path in self._folder.glob("gauge_*.db")}:
            if not _alive(pid):
                with suppress(FileNotFoundError):  # another process was faster
                    mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
        # An empty file is one that is being made, or whose maker died at that.
        files = [str(path) for path in self._folder.glob("*.db") if _size(path)]
        yield from MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
