"""What is chosen beside the chat, and the same as a command and as a request."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_TURNS = 50  # of a conversation that go along with a question; the service takes no more


@dataclass(frozen=True, slots=True)
class Choices:
    """How questions are to be answered. What is None is left to the settings of the service."""

    collection: str
    mode: str = "hybrid"
    top_k: int = 5
    where: Mapping[str, Any] = field(default_factory=dict)
    rerank: bool | None = None
    temperature: float | None = None
    max_tokens: int | None = None

    def search(self, question: str) -> dict[str, Any]:
        """The body of POST /search."""
        body = {
            "question": question,
            "collection": self.collection,
            "top_k": self.top_k,
            "mode": self.mode,
            "where": self.where or None,
            "rerank": self.rerank,
        }
        return {name: value for name, value in body.items() if value is not None}

    def query(self, question: str, history: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
        """The body of POST /query. `history` has "question" and "answer" of earlier turns."""
        more = {
            "history": list(history[-MAX_TURNS:]) or None,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        body = self.search(question)
        return body | {name: value for name, value in more.items() if value is not None}

    def command(self, question: str) -> str:
        """The `rag ask` that asks the same."""
        words = ["rag"]
        for name in ("temperature", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                words += ["--set", f"generator.{name}={value}"]
        words += ["ask", "--collection", self.collection]
        words += ["--top-k", str(self.top_k), "--mode", self.mode]
        if self.where:
            words += ["--where", json.dumps(self.where, ensure_ascii=False)]
        if self.rerank is not None:
            words.append("--rerank" if self.rerank else "--no-rerank")
        return shlex.join([*words, *(["--"] if question.startswith("-") else []), question])

    def request(self, question: str, url: str, *, key: bool) -> str:
        """The `curl` that posts the same to a service. The key is left for the reader to set."""
        body = json.dumps(self.query(question), ensure_ascii=False)
        lines = [f"curl {shlex.quote(f'{url}/query')}", "-H 'Content-Type: application/json'"]
        if key:
            lines.append('-H "Authorization: Bearer $RAG_KEY"')
        lines.append(f"-d {shlex.quote(body)}")
        return " \\\n     ".join(lines)
