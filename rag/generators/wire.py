"""What servers with OpenAI's chat API send, and where they differ; `concessions` has the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel

from rag.errors import ModelError, ModelUnavailable
from rag.model_server import complaint, refusal
from rag.types import Usage

Messages: TypeAlias = Sequence[Mapping[str, str]]

_CUT_SHORT = {"content_filter", "abort", "error"}  # a finish_reason that means half an answer


def check_finish(source: str, model: str, finish: str, written: bool) -> None:
    """Raise if an answer that ended is cut short, or has no text: `written` is False."""
    if finish in _CUT_SHORT:
        raise ModelError(f"{source} stopped its answer ({finish})", "look at the server's log")
    if not written:
        # Not an abstention: the model has a word for that.
        raise ModelError(
            f"{model} gave an empty answer",
            "raise generator.max_tokens (a reasoning model may spend it all before it answers)"
            if finish == "length"
            else "look at the server's log",
        )


class Reading:
    """What is known so far of one answer.

    `tokens` counts what the model has said, its reasoning included, in pieces; `finish` is the
    server's reason to stop; `done`: nothing more is to be read.
    """

    def __init__(self, url: str) -> None:
        self.done = False
        self.written = False
        self.tokens = 0
        self.finish = ""
        self.usage = Usage()
        self._url = url
        self._whole = False
        self._failed = False  # the next data is an error
        self._rest = b""
        self._thoughts = Thoughts()

    def feed(self, data: bytes) -> Iterator[str]:
        """The texts in a piece of the stream, however it is cut; no data is the stream's end.

        ValueError if it is not of the protocol; the server's own error as a ModelError.
        """
        # On \n alone: U+2028 and its like may stand inside the JSON.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self.done and (text := self._line(line.strip())):
                yield text
        if not data:
            yield from self._end()

    def body(self, data: bytes) -> Iterator[str]:
        """The text of an answer that comes in one piece of JSON."""
        # Where the prompt itself opened the thoughts, only their end is there.
        text = self._event(data).rpartition(Thoughts.CLOSE)[2].lstrip()
        self._whole = self.written = bool(text)
        if text:
            yield text
        yield from self._end()

    def check(self, model: str) -> None:
        """Raise if what came is not a whole answer."""
        if not (self.finish or self._whole):
            if self.written:
                raise ModelUnavailable(f"{self._url} broke off its answer", "try again")
            raise ModelUnavailable(
                f"{self._url} does not give an answer",
                "check generator.url (it ends in /v1), and the server's log",
            )
        check_finish(self._url, model, self.finish, self.written)

    def _line(self, line: bytes) -> str:
        if line.startswith(b"data:"):
            return self._event(line[5:].strip())
        if line.startswith(b"event:"):
            self._failed = line[6:].strip() == b"error"
        elif line.startswith(b"error:"):  # llama-server
            self._failed = True
            return self._event(line[6:].strip())
        elif line.startswith(b"{"):  # an error that was written into the stream without its frame
            return self._event(line)
        return ""

    def _event(self, data: bytes) -> str:
        if data == b"[DONE]":
            self._whole = True
            return "".join(self._end())
        chunk = _Chunk.model_validate_json(data)
        if chunk.error or chunk.object == "error" or self._failed:
            status, said = complaint(json.loads(data))
            if self.tokens:  # what is half answered was no bad request, whatever the code
                status = max(status, 500)
            raise refusal(status, said, "generator", self._url)
        if chunk.usage:
            self.usage = Usage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        new = choice.delta or choice.message or _NOTHING
        self.tokens += bool(new.content or new.reasoning_content or new.reasoning)
        text = self._thoughts.left_out(new.content) if new.content else ""
        if choice.finish_reason:
            self.finish = choice.finish_reason
            text += self._thoughts.rest()
        self.written = self.written or bool(text.strip())
        return text

    def _end(self) -> Iterator[str]:
        self.done = True
        if text := self._thoughts.rest():
            self.written = self.written or bool(text.strip())
            yield text


class Thoughts:
    """Leaves out the <think>...</think> that an answer may begin with, in whatever pieces.

    Thoughts without their <think>, because the chat template has put it into the prompt, as those
    of DeepSeek-R1 and Qwen3-Thinking do, cannot be told from an answer before they end. A stream
    shows them, unless the server has a reasoning parser; an answer asked for whole does not.
    """

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self) -> None:
        self._held = ""
        self._thinking = self._over = self._thought = False

    def left_out(self, text: str) -> str:
        if self._over:
            return text
        self._held += text
        while True:
            if self._thinking:
                thought, closed, rest = self._held.partition(self.CLOSE)
                if not closed:
                    self._held = thought[-len(self.CLOSE) :]
                    return ""
                self._held, self._thinking, self._thought = rest, False, True
            begun = self._held.lstrip()
            if self.OPEN.startswith(begun):
                return ""
            if not begun.startswith(self.OPEN):
                return self.rest()
            self._held, self._thinking = begun[len(self.OPEN) :], True

    def rest(self) -> str:
        """What was held back because it might have become a tag."""
        held, self._held, self._over = self._held, "", True
        if self._thinking:
            return ""
        return held.lstrip() if self._thought else held


# --- the fields of the protocol that are read; servers leave out, add and null the others


class _Said(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(BaseModel):
    object: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_NOTHING = _Said()


class Model(BaseModel):
    """An entry of /v1/models. `max_model_len` is vLLM's, and SGLang's."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    """What /v1/models says."""

    data: list[Model]
