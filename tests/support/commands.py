"""Run `rag` as a person does: a process of its own, no terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that an error is; fails if there is a trace or more than the line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if not line.startswith("rag: fetching")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("rag: error: "), self.err
        return lines[0]


def rag(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Result:
    """Run the command line with these arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "rag.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)
