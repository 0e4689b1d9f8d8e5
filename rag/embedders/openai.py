"""Any server with OpenAI's embeddings API: vLLM, TEI, llama-server, Ollama, OpenAI itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import openai
from pydantic import BaseModel, SecretStr

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable
from rag.model_server import check_url
from rag.openai_api import TRANSPORT_ERRORS, translated
from rag.prompt import tokens
from rag.types import Fingerprint

if TYPE_CHECKING:
    from rag.types import Vectors

_LONGEST_PAUSE_S = 60.0


class OpenAIEmbedder:
    """Embeds at `url`/embeddings. Connection errors, 429 and 5xx are tried again, `retries` times.

    Tokens are counted with `tokenizer`, the path of a tokenizer.json, or else estimated from
    above. A text over `max_tokens` is an error before it is sent, because some servers cut it
    without a word; so is the server's own refusal of it.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key: SecretStr | None = None,
        batch_size: int = 64,
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        tokenizer: str = "",
        max_tokens: int = 0,
        timeout_s: float = 60.0,
        retries: int = 2,
        options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """`options` are sent with each request, such as {"dimensions": 256}."""
        check_url(url, "embedder")
        self._url = url
        self._model = model
        self._batch_size = batch_size
        self._query_prefix = query_prefix or ""
        self._document_prefix = document_prefix or ""
        self._options = options or {}
        self._tokenizer_file = tokenizer
        self.max_tokens = max_tokens or 512
        self._timeout = timeout_s
        self._retries = retries
        self._asking = threading.Lock()
        self._key = api_key.get_secret_value().strip() if api_key else ""

    @cached_property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            timeout=openai.Timeout(self._timeout, connect=5.0),
            max_retries=0,  # the client would send again what took too long, or is too long
        )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Asks the server for one vector, because only that tells the dimension."""
        with self._asking:
            dim = len(self._request(["dimension"])[0])
        return Fingerprint(
            model=self._model,
            revision="",  # servers do not say
            dim=dim,
            query_prefix=self._query_prefix,
            document_prefix=self._document_prefix,
            precision="server",
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._count([self._document_prefix + text for text in texts])

    def legibility(self, text: str) -> float:
        """1: the server does not say."""
        return 1.0

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        prefixed = [self._document_prefix + text for text in texts]
        longest = max(self._count(prefixed), default=0)
        if longest > self.max_tokens:
            raise ContextTooLong(
                f"a text of {longest} tokens is over the limit of {self.max_tokens}",
                "set ingest.chunk_tokens lower, or embedder.max_tokens to what the model takes",
            )
        return self._embed(prefixed)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        prefixed = [self._query_prefix + text for text in texts]
        try:
            return self._embed(prefixed)
        except ContextTooLong:
            return np.concatenate([self._embed_cut(text) for text in prefixed])

    def _embed_cut(self, text: str) -> Vectors:
        """The vector of as much of the text's beginning as the server takes."""
        while True:
            try:
                return self._embed([text])
            except ContextTooLong:
                if len(text) < 2:
                    raise
                text = text[: len(text) // 2]

    def _embed(self, texts: list[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self.fingerprint.dim), np.float32)
        size = self._batch_size
        rows = [
            row
            for start in range(0, len(texts), size)
            for row in self._request(texts[start : start + size])
        ]
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise ModelError(
                f"{self._url} gave vectors of {' and '.join(map(str, sorted(lengths)))} numbers",
                "look at the server's log",
            )
        vectors = np.array(rows, np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise ModelError(f"{self._url} gave NaN or zero vectors", "look at the server's log")
        unit: Vectors = vectors / norms
        return unit

    def _request(self, texts: list[str]) -> list[list[float]]:
        """One row a text, in their order."""
        rows = sorted(self._asked(texts), key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise ModelError(
                f"{self._url} gave {len(rows)} vectors for {len(texts)} texts, or misnumbered them",
                "look at the server's log",
            )
        return [row.embedding for row in rows]

    def _asked(self, texts: list[str]) -> list[_Row]:
        for attempt in range(self._retries + 1):
            try:
                answer = self._client.embeddings.with_raw_response.create(
                    model=self._model,
                    input=texts,
                    encoding_format="float",
                    extra_body=self._options,
                )
                return _Rows.model_validate(json.loads(answer.content)).data
            except TRANSPORT_ERRORS as error:
                failure = self._failure(error)
                if attempt == self._retries or not _passing(error, failure):
                    raise failure from error
                pause = _pause(error, attempt)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _failure(self, error: Exception) -> ModelError:
        if _timed_out(error):
            return ModelUnavailable(
                f"{self._url} did not answer in {self._timeout:g} s",
                "try again, or raise embedder.timeout_s",
            )
        return translated(error, "embedder", self._url)

    def _count(self, texts: list[str]) -> list[int]:
        if self._tokenizer is None:
            return [tokens(text) for text in texts]
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(texts)]

    @cached_property
    def _tokenizer(self) -> Any:
        if not self._tokenizer_file:
            return None
        from tokenizers import Tokenizer

        if not Path(self._tokenizer_file).is_file():
            raise ConfigError(
                f"there is no tokenizer {self._tokenizer_file}", "set embedder.tokenizer to a file"
            )
        tokenizer = Tokenizer.from_file(self._tokenizer_file)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


class _Row(BaseModel):
    index: int
    embedding: list[float]


class _Rows(BaseModel):
    data: list[_Row]


def _timed_out(error: Exception) -> bool:
    """Whether the server took the request and was too slow with the answer."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, httpx2.ReadTimeout) for cause in causes)


def _passing(error: Exception, failure: ModelError) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, openai.APIStatusError):
        return isinstance(failure, ModelUnavailable)
    return isinstance(error, openai.APIConnectionError) and not _timed_out(error)


def _pause(error: Exception, attempt: int) -> float:
    """Seconds to wait: what the server asks for, within reason, or half a second, then a whole."""
    asked = ""
    if isinstance(error, openai.APIStatusError):
        asked = error.response.headers.get("retry-after", "")
    try:
        return min(max(0.0, float(asked)), _LONGEST_PAUSE_S)
    except ValueError:  # not said, or a date
        return 0.5 * 2.0**attempt
