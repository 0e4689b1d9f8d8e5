"""What Prometheus gets to see: of one process, of several, and of a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import uvicorn
from chroma_server import free_port
from prometheus_client.parser import text_string_to_metric_families
from servers import wait_until

from rag.service.metrics import Metrics
from rag.settings import ServiceSettings
from rag.types import Answer, Usage

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
ANSWER = Answer(
    question="How long?",
    text="Two days.",
    citations=(),
    abstained=False,
    model="m",
    degraded=("reranker", "cache"),
    timings_ms={"embed": 8.0, "search": 4.0, "wait": 20.0, "generate": 400.0, "first_token": 32.0},
    usage=Usage(prompt_tokens=900, completion_tokens=100),
)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics(ServiceSettings(price_prompt=0.5, price_completion=2.0))
    yield made
    made.close()


def figures(metrics: Metrics) -> dict[str, float]:
    """Each sample by its name and its labels, as a scrape has them."""
    text = metrics.render("")[0].decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {
        "|".join([s.name, *(s.labels[name] for name in sorted(s.labels))]): s.value for s in samples
    }


def test_an_answer_is_counted_with_its_stages_tokens_parts_and_cost(metrics: Metrics) -> None:
    metrics.answered(ANSWER)
    seen = figures(metrics)
    assert seen["rag_answers_total"] == 1
    assert seen["rag_abstentions_total"] == 0
    assert seen["rag_degraded_total|reranker"] == seen["rag_degraded_total|cache"] == 1
    assert seen["rag_tokens_total|prompt"] == 900
    assert seen["rag_tokens_total|completion"] == 100
    assert seen["rag_cost_total"] == pytest.approx(900 / 1000 * 0.5 + 100 / 1000 * 2.0)
    assert seen["rag_stage_seconds_sum|generate"] == pytest.approx(0.4)
    assert seen["rag_first_token_seconds_sum"] == pytest.approx(0.032)
    assert not any("total" in name and name.startswith("rag_stage") for name in seen)


def test_without_a_price_there_is_no_cost() -> None:
    metrics = Metrics(ServiceSettings())
    metrics.answered(ANSWER)
    assert "rag_cost_total" not in figures(metrics)


def test_gauges_breakers_and_jobs_are_asked_at_each_scrape(metrics: Metrics) -> None:
    now = {"working": 1}
    metrics.gauges({"in_flight": lambda: now["working"], "queue_depth": lambda: 7})
    metrics.breakers({"store": lambda: "half-open", "generator": lambda: "open"})
    metrics.jobs(lambda: {"done": 3, "failed": 1})
    assert figures(metrics)["rag_in_flight"] == 1
    now["working"] = 5
    seen = figures(metrics)
    assert (seen["rag_in_flight"], seen["rag_queue_depth"]) == (5, 7)
    assert (seen["rag_breaker_state|store"], seen["rag_breaker_state|generator"]) == (1, 2)
    assert (seen["rag_jobs|done"], seen["rag_jobs|failed"]) == (3, 1)


def test_what_cannot_be_measured_does_not_break_a_scrape(metrics: Metrics) -> None:
    metrics.gauges({"in_flight": lambda: 1 / 0})
    metrics.jobs(lambda: {}["closed"])
    metrics.refused("overloaded")
    assert figures(metrics)["rag_refused_total|overloaded"] == 1


def test_methods_that_do_not_exist_make_no_series(metrics: Metrics) -> None:
    for n in range(50):
        metrics.request("unknown", f"HACK{n}", 405, 0.001)
    counts = {n: v for n, v in figures(metrics).items() if n.startswith("rag_requests_total")}
    assert counts == {"rag_requests_total|other|unknown|405": 50}


def test_two_services_of_one_process_count_apart(metrics: Metrics) -> None:
    other = Metrics(ServiceSettings())
    other.cached("answers", "hit")
    metrics.cached("vectors", "miss", 3)
    assert figures(other)["rag_cache_requests_total|answers|hit"] == 1
    assert "rag_cache_requests_total|answers|hit" not in figures(metrics)
    assert figures(metrics)["rag_cache_requests_total|vectors|miss"] == 3


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
        ("application/openmetrics-text; version=x.y", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=", "application/openmetrics-text"),
        ("*/*;;;=,,\x00", "text/plain; version=0.0.4"),
    ],
)
def test_the_format_is_what_was_asked_for(metrics: Metrics, accept: str, kind: str) -> None:
    metrics.store_failed()
    body, found = metrics.render(accept)
    assert found.startswith(kind)
    assert body.endswith(b"# EOF\n") == kind.startswith("application/openmetrics")


def test_promtool_finds_nothing_to_mend_in_names_and_types(metrics: Metrics) -> None:
    metrics.answered(ANSWER)
    metrics.request("/query", "POST", 200, 0.1)
    metrics.gauges({"in_flight": lambda: 1})
    body, _ = metrics.render("")
    # A client's own creation times are gauges of no unit; Prometheus knows them.
    text = re.sub(r"(?m)^.*_created.*\n", "", body.decode())
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_deployed_rules_are_valid_and_use_metrics_that_exist(metrics: Metrics) -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", str(DEPLOYED / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    metrics.breakers({"store": lambda: "closed"})
    known = set(re.findall(r"(?m)^# TYPE (\w+)", metrics.render("")[0].decode()))
    known |= {"rag_gpu_memory_used_bytes", "rag_gpu_memory_total_bytes"}
    used = set(re.findall(r"\brag_\w+", (DEPLOYED / "alerts.yml").read_text()))
    assert {name.removesuffix("_bucket") for name in used} <= known


def test_counting_a_request_takes_microseconds(metrics: Metrics) -> None:
    def once() -> float:
        started = time.thread_time()
        for _ in range(1000):
            metrics.request("/query", "POST", 200, 0.012)
        return (time.thread_time() - started) / 1000

    assert min(once() for _ in range(5)) < 20e-6  # 5 us, 9 us with several processes


# --- a real Prometheus


@contextmanager
def served(metrics: Metrics) -> Iterator[str]:
    """host:port of a server that answers every request with `render`."""

    async def answer(scope, receive, send):  # type: ignore[no-untyped-def]
        accept = dict(scope["headers"]).get(b"accept", b"").decode()
        body, kind = metrics.render(accept)
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    port = free_port()
    config = uvicorn.Config(answer, port=port, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 10)
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_prometheus_scrapes_it(metrics: Metrics, tmp_path: Path) -> None:
    from prometheus import prometheus

    for status in (200, 200, 503):
        metrics.request("/collections/{name}", "GET", status, 0.02)
    metrics.answered(ANSWER)
    metrics.gauges({"queue_depth": lambda: 4})
    with served(metrics) as target, prometheus(target, tmp_path / "prometheus") as asked:
        asked.wait_for('up{job="rag"}', 1)
        asked.wait_for('rag_requests_total{route="/collections/{name}", status="200"}', 2)
        asked.wait_for("rag_queue_depth", 4)
        asked.wait_for('rag_request_seconds_bucket{le="0.025"}', 3)
        metrics.request("/query", "POST", 200, 0.3)
        asked.wait_for("sum(rag_requests_total)", 4)


# --- several processes

WORKER = """
import sys
from rag.service.metrics import Metrics
from rag.settings import ServiceSettings
metrics = Metrics(ServiceSettings())
metrics.gauges({"in_flight": lambda: int(sys.argv[1])})
metrics.breakers({"store": lambda: sys.argv[2]})
metrics.jobs(lambda: {"done": 9})
for _ in range(10):
    metrics.request("/query", "POST", 200, 0.1)
print("counted", flush=True)
for line in sys.stdin:
    sys.stdout.write(metrics.render("")[0].decode() + "\\n.\\n")
    sys.stdout.flush()
"""


class Worker:
    def __init__(self, folder: Path, in_flight: int, state: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(in_flight), state],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "counted\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return line

    def scraped(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return "".join(iter(self._line, ".\n"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def test_processes_add_up_and_a_dead_one_leaves_only_its_counts(tmp_path: Path) -> None:
    (tmp_path / "counter_999999.db").touch()  # its maker died before it wrote
    one, other = Worker(tmp_path, 2, "half-open"), Worker(tmp_path, 3, "open")
    try:
        # The other process is not scraped itself: it keeps its gauges up to date on its own.
        wait_until(lambda: "rag_in_flight 5.0" in one.scraped(), 10)
        seen = one.scraped()
        assert 'rag_requests_total{method="POST",route="/query",status="200"} 20.0' in seen
        assert 'rag_request_seconds_count{route="/query"} 20.0' in seen
        assert 'rag_breaker_state{part="store"} 2.0' in seen
        assert 'rag_jobs{state="done"} 9.0' in seen  # they share these
        assert "pid=" not in seen
        other.kill()
        seen = one.scraped()
        assert "rag_in_flight 2.0" in seen
        assert 'rag_breaker_state{part="store"} 1.0' in seen
        assert 'status="200"} 20.0' in seen
    finally:
        for worker in (one, other):
            worker.kill()


# --- GPUs


class NvmlError(Exception):
    pass


def driver(gpus: int, asked: list[int]) -> ModuleType:
    """What pynvml offers, of a driver with this many GPUs; 0: there is no driver."""
    nvml = ModuleType("pynvml")
    nvml.__spec__ = ModuleSpec("pynvml", None)

    def start() -> None:
        if not gpus:
            raise NvmlError

    def utilisation(handle: int) -> SimpleNamespace:
        asked.append(handle)
        if handle == 1:
            raise NvmlError  # as MIG does
        return SimpleNamespace(gpu=25)

    functions = {
        "NVMLError": NvmlError,
        "nvmlInit": start,
        "nvmlDeviceGetCount": lambda: gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: "NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=3 * 2**30, total=4 * 2**30),
        "nvmlDeviceGetUtilizationRates": utilisation,
    }
    for name, function in functions.items():
        setattr(nvml, name, function)
    return nvml


def test_gpus_are_read_at_a_scrape_and_at_most_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "pynvml", driver(2, asked))
    metrics = Metrics(ServiceSettings())
    assert asked == []
    seen = figures(metrics)
    figures(metrics)
    assert seen["rag_gpu_memory_used_bytes|0|NVIDIA H200"] == 3 * 2**30
    assert seen["rag_gpu_memory_total_bytes|1|NVIDIA H200"] == 4 * 2**30
    assert seen["rag_gpu_utilization_ratio|0|NVIDIA H200"] == 0.25
    assert "rag_gpu_utilization_ratio|1|NVIDIA H200" not in seen
    assert asked == [0, 1]


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(0, []))
    assert not any("gpu" in name for name in figures(Metrics(ServiceSettings())))


@pytest.mark.gpu
def test_a_real_gpu_tells_its_memory() -> None:
    seen = figures(Metrics(ServiceSettings()))
    totals = [value for name, value in seen.items() if name.startswith("rag_gpu_memory_total")]
    assert min(totals) > 2**30
