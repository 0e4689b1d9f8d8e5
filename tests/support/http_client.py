"""Ask a service as an application does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

QUESTION = "My box reports E-22. What do I press to start balancing the cells?"
OFF_TOPIC = "Who won the football World Cup in 1998?"


class Event(NamedTuple):
    """A server-sent event; its data is JSON."""

    name: str
    data: Any


@contextmanager
def client(url: str, key: str = "", timeout: float = 60) -> Iterator[httpx2.Client]:
    """A client of the service at `url`, with a key if there is one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=timeout) as opened:
        yield opened


def events(response: httpx2.Response) -> Iterator[Event]:
    """The events of a stream as they come."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield Event(name, json.loads(line[6:]))


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, str]:
    """The error that a reply is; it must have the one shape, and hold no trace."""
    assert response.status_code == status, response.text
    assert "Traceback" not in response.text
    assert set(response.json()) == {"error"}
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"code", "message", "hint", "request_id"}
    assert error["code"] == code, error
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert "\n" not in error["message"]
    if status in (429, 503):
        assert int(response.headers["Retry-After"]) >= 1
    return error
