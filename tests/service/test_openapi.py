"""Requests made from the OpenAPI description, by schemathesis: the service does as it says.

Its command line runs here, because its own fixtures do not know pytest 9.2.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from documents import taken_in
from http_client import client
from service import new_key, service

_LIMITS = {"service.rate_limit": "", "service.address_limit": "", "service.max_jobs": 100_000}
_CONFIG = """
[[operations]]
include-name = "POST /documents"
# No schema says of bytes that they are a PDF, or of text that it is JSON.
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "415", "422"]

[[operations]]
include-name = "GET /documents"
# Nor of text that it was a cursor.
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "422"]
"""


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "with keys"])
def test_it_does_as_it_describes(tmp_path: Path, guarded: bool) -> None:
    data_dir = tmp_path / "data"
    key = new_key(data_dir, "--scope", "admin") if guarded else ""
    with service(data_dir, settings=_LIMITS) as running:
        with client(running.url, key) as api:
            taken_in(api, "note.txt", "The safe is behind the picture.")
            description = api.get("/openapi.json").json()
        schemes = description["components"].get("securitySchemes", {})
        assert set(schemes) == ({"bearer", "key"} if guarded else set())
        failures = checked(f"{running.url}/openapi.json", key, tmp_path)
        assert "unexpected" not in running.stderr, running.stderr[-5000:]
    assert not failures, failures


def checked(url: str, key: str, folder: Path) -> str:
    """What all checks have found; the same requests in each run."""
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", url),
            *("--checks", "all", "--max-examples", "6", "--generation-deterministic"),
            *("--request-timeout", "30", "--continue-on-failure", "--no-color"),
            *(("-H", f"Authorization: Bearer {key}") if key else ()),
        ],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"
