"""Load from wrk, a process of its own: requests in turn, each client's as soon as its last one is
answered."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60
_ERRORS = ("connect", "read", "write", "status", "timeout")
# One line of FILE is one body; what it saw is the last line of its output.
_SCRIPT = """
local requests, turn = {}, 0
local headers = {["Content-Type"] = "application/json"}

function init(arguments)
  for body in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "us": %d, "p50": %f, "p99": %f, "errors": [%d, %d, %d, %d, %d]}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What it saw: requests a second, and latencies in milliseconds.

    wrk adds to the latencies what requests would have waited that a slow answer kept from being
    sent ("coordinated omission"), so a high percentile is rather too high than too low.
    """

    rate: float
    p50: float
    p99: float


class Wrk:
    """Posts JSON from files that it keeps in `folder`. RuntimeError where wrk is not installed."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("wrk") is None:
            raise RuntimeError("there is no wrk; install it with: apt install wrk")
        self._script = folder / "post.lua"
        self._script.write_text(_SCRIPT)
        self._bodies = folder / "bodies.jsonl"

    def post(self, url: str, bodies: Sequence[Any], clients: int = 1, seconds: float = 10) -> Load:
        """Post the bodies in turn. RuntimeError unless every answer is well and has status 2xx."""
        self._bodies.write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
        done = subprocess.run(
            [
                *("wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s"),
                *(f"--timeout={_TIMEOUT_S}s", f"--script={self._script}"),
                *(url, "--", str(self._bodies)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        errors = {n: count for n, count in zip(_ERRORS, seen["errors"], strict=True) if count}
        if errors or not seen["requests"]:
            raise RuntimeError(f"{url}: {seen['requests']} answers, errors {errors}")
        return Load(seen["requests"] / seen["us"] * 1e6, seen["p50"] / 1000, seen["p99"] / 1000)
