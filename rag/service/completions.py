"""Answers as OpenAI's chat completions, with the extensions `citations` and `rag`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from rag.service.schemas import CitationOut, StatementOut

Json: TypeAlias = dict[str, Any]


class MessageOut(BaseModel):
    """The answer. `citations` lead from the markers in it to the passages."""

    role: Literal["assistant"]
    content: str
    refusal: None
    citations: list[CitationOut]


class ChoiceOut(BaseModel):
    """Always the only one."""

    index: Literal[0]
    message: MessageOut
    logprobs: None
    finish_reason: Literal["stop", "length"]


class TokensOut(BaseModel):
    """Tokens that the model counted; 0 where it does not say."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RagOut(BaseModel):
    """What OpenAI's reply has no place for; as in the reply of POST /query."""

    abstained: bool
    evidence: float
    statements: list[StatementOut]
    degraded: list[str]
    notice: str
    search: str
    model: str
    timings_ms: dict[str, float]
    collection: str
    collection_generation: str | None
    cached: bool
    request_id: str


class CompletionOut(BaseModel):
    """A chat completion with the extensions `rag` and, in its message, `citations`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceOut]
    usage: TokensOut
    rag: RagOut


@dataclass(frozen=True, slots=True)
class Completion:
    """Writes one reply. `model` is the collection, `created` in seconds since the epoch."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Json) -> Json:
        """The answer of POST /query as a chat completion."""
        message = {
            "role": "assistant",
            "content": answer["answer"],
            "refusal": None,
            "citations": answer["citations"],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _end(answer)}
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": _tokens(answer), "rag": _extension(answer)}

    def piece(self, delta: Json) -> Json:
        """The next piece of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def end(self, answer: Json) -> Json:
        """The last piece, with the extensions."""
        piece = self.piece({"citations": answer["citations"]})
        piece["choices"][0]["finish_reason"] = _end(answer)
        return {**piece, "rag": _extension(answer)}

    def usage(self, answer: Json) -> Json:
        """What follows the last piece where the tokens were asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _tokens(answer)}

    def _head(self, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def _end(answer: Json) -> str:
    return "length" if answer["usage"]["truncated"] else "stop"


def _tokens(answer: Json) -> Json:
    usage = answer["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": total,
    }


def _extension(answer: Json) -> Json:
    return {name: answer[name] for name in RagOut.model_fields}
