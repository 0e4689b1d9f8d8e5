"""Run a command, and end it with all its processes when our standard input closes.

    python -m rag.engine.guard COMMAND...

Whoever started us holds the other end of that pipe: the system closes it even after `kill -9`, so
no engine outlives `rag engine serve`. The exit status is the command's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

_GRACE_S = 15.0  # vLLM waits for its workers when it is asked to end


def main() -> int:
    """Run the command of the arguments."""
    asked: SimpleQueue[None] = SimpleQueue()  # its put is safe in a signal handler
    # Before the start: a signal in the middle of it would end us, and leave the engine.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.put(None))
    # A group of its own: the workers of an engine are its children, and end with it.
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_ask_at_close, args=(asked,), daemon=True).start()
    threading.Thread(target=_end_when, args=(asked, process), daemon=True).start()
    status = process.wait()
    _kill(process, signal.SIGKILL)  # what it left behind
    return status if status >= 0 else 128 - status


def _ask_at_close(asked: SimpleQueue[None]) -> None:
    while os.read(0, 4096):
        pass
    asked.put(None)


def _end_when(asked: SimpleQueue[None], process: subprocess.Popen[bytes]) -> None:
    asked.get()
    _kill(process, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        _kill(process, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: a group that has ended
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
