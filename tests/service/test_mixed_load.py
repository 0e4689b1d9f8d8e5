"""Two tenants at once on a service whose Redis and generator die and come back; see the script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_mixed.py"


def test_nothing_is_lost_or_shown_to_others_while_parts_die() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", "0.5"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RedisServer, LanguageModel, 2 times" in done.stdout
    assert "wrong: 0" in done.stdout
