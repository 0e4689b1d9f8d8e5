"""What some servers and models do not take in a request, and what they take instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rag.generators.wire import Messages


@dataclass(frozen=True, slots=True)
class Concession:
    """What is changed in a request once a server's refusal has said `said`."""

    said: re.Pattern[str]
    change: Callable[[dict[str, Any]], dict[str, Any]]


def concession(status: int, said: str, made: Sequence[Concession]) -> Concession | None:
    """What may make a server take a request that it refused, beyond the concessions `made`."""
    if status in (400, 422, 500):
        for known in CONCESSIONS:
            if known not in made and known.said.search(said):
                return known
    return None


def two_roles(messages: Messages) -> list[dict[str, str]]:
    """The same messages of user and assistant in turn, the system's joined to the user's first."""
    joined: list[dict[str, str]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if joined and joined[-1]["role"] == role:
            joined[-1]["content"] += "\n\n" + message["content"]
        else:
            joined.append({"role": role, "content": message["content"]})
    return joined


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {key: value for key, value in body.items() if key != name}


def _renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {new if key == old else key: value for key, value in body.items()}


CONCESSIONS = (
    Concession(re.compile("stream_options"), _without("stream_options")),
    # OpenAI's reasoning models
    Concession(
        re.compile("max_tokens.*max_completion_tokens", re.DOTALL),
        _renamed("max_tokens", "max_completion_tokens"),
    ),
    Concession(re.compile("temperature.*does not support"), _without("temperature")),
    # chat templates of Gemma, and of Mistral before 0.3
    Concession(
        re.compile(r"system role|role.{0,9}system|roles must alternate|only user and", re.I),
        lambda body: {**body, "messages": two_roles(body["messages"])},
    ),
)
