"""Send documents to a service, and wait for what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from servers import wait_until

_JOB_S = 90


def upload(api: httpx2.Client, name: str, data: bytes | str | Path, **fields: str) -> Any:
    """The job that takes a file in; `fields` are those of the form."""
    body = data.read_bytes() if isinstance(data, Path) else data
    reply = api.post("/documents", files={"file": (name, body)}, data=fields)
    assert reply.status_code == 202, reply.text
    return reply.json()


def ended(api: httpx2.Client, job: Any) -> Any:
    """The job once it has ended, well or not."""
    last = job

    def over() -> bool:
        nonlocal last
        reply = api.get(f"/jobs/{job['id']}")
        assert reply.status_code == 200, reply.text
        last = reply.json()
        return last["state"] in ("done", "failed")

    wait_until(over, _JOB_S)
    return last


def taken_in(api: httpx2.Client, name: str, data: bytes | str | Path, **fields: str) -> Any:
    """The job of a file that has been taken in; fails if it was not."""
    job = ended(api, upload(api, name, data, **fields))
    assert job["state"] == "done", job
    return job


def sources(api: httpx2.Client, collection: str = "default") -> list[str]:
    """The sources of the documents that the caller sees."""
    reply = api.get("/documents", params={"collection": collection})
    assert reply.status_code == 200, reply.text
    return [document["source"] for document in reply.json()["documents"]]
