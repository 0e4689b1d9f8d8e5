"""The guard of an engine, with a real process to guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def test_a_signal_in_the_middle_of_the_start_leaves_no_engine() -> None:
    command = [sys.executable, "-m", "rag.engine.guard", "sleep", "60"]
    for _ in range(3):
        with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
            engine = first_child(guard.pid)
            guard.terminate()
            try:
                assert guard.wait(20) == 128 + signal.SIGTERM, "the engine's status is the guard's"
                assert not Path(f"/proc/{engine}").exists()
            finally:
                guard.kill()
                with suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGKILL)


def first_child(pid: int) -> int:
    """The process that `pid` starts, as soon as there is one: without a pause to look in."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    end = time.monotonic() + 20
    while not (found := children.read_text().split()):
        assert time.monotonic() < end
    return int(found[0])
