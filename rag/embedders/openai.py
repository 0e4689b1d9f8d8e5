"""Any server with OpenAI's embeddings API: vLLM, TEI, llama-server, Ollama, OpenAI itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
from pydantic import SecretStr

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable
from rag.prompt import tokens
from rag.types import Fingerprint

if TYPE_CHECKING:
    from rag.types import Vectors


class OpenAIEmbedder:
    """Embeds at `url`/embeddings. Retries on connection errors and 5xx.

    Tokens are counted with `tokenizer`, the path of a tokenizer.json, or else estimated from
    above. The server's refusal of a text that is too long is an error, never a cut.
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
        options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """`options` are sent with each request, such as {"dimensions": 256}."""
        if not url:
            raise ConfigError(
                "embedder.url is not set", "set it to the server's URL, ending in /v1"
            )
        self._url = url
        self._model = model
        self._batch_size = batch_size
        self._query_prefix = query_prefix or ""
        self._document_prefix = document_prefix or ""
        self._options = options or {}
        self._tokenizer_file = tokenizer
        self.max_tokens = max_tokens or 512
        self._asking = threading.Lock()
        self._client = openai.OpenAI(
            base_url=url,
            api_key=(api_key.get_secret_value() if api_key else "") or "none",
            timeout=openai.Timeout(timeout_s, connect=5.0),
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
        prefixed = [self._document_prefix + text for text in texts]
        if self._tokenizer is None:
            return [tokens(text) for text in prefixed]
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(prefixed)]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self._embed([self._document_prefix + text for text in texts])

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embed([self._query_prefix + text for text in texts])

    def _embed(self, texts: list[str]) -> Vectors:
        if not texts:
            return np.zeros((0, self.fingerprint.dim), np.float32)
        size = self._batch_size
        rows = [
            row
            for start in range(0, len(texts), size)
            for row in self._request(texts[start : start + size])
        ]
        vectors = np.array(rows, np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise ModelError(f"{self._url} gave NaN or zero vectors", "look at the server's log")
        unit: Vectors = vectors / norms
        return unit

    def _request(self, texts: list[str]) -> list[list[float]]:
        try:
            answer = self._client.embeddings.create(
                model=self._model, input=texts, encoding_format="float", extra_body=self._options
            )
        except openai.APITimeoutError as error:
            raise ModelUnavailable(
                f"{self._url} did not answer in time", "try again, or raise embedder.timeout_s"
            ) from error
        except openai.APIConnectionError as error:
            raise ModelUnavailable(
                f"no embedding server answers at {self._url}", "start it, or set embedder.url"
            ) from error
        except openai.APIStatusError as error:
            said = " ".join(str(error.message).split())[:200]
            if error.status_code in (400, 413, 422) and any(
                word in said for word in ("token", "context", "long", "length")
            ):
                raise ContextTooLong(
                    f"{self._url} finds a text too long ({said})", "set ingest.chunk_tokens lower"
                ) from error
            raise ModelUnavailable(
                f"{self._url} failed ({error.status_code}: {said})",
                "check embedder.url, embedder.model and embedder.api_key",
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise ModelUnavailable(
                f"{self._url} does not speak the embeddings API", "check embedder.url"
            ) from error
        rows = sorted(answer.data, key=lambda item: item.index)
        if len(rows) != len(texts):
            raise ModelError(
                f"{self._url} gave {len(rows)} vectors for {len(texts)} texts",
                "look at the server's log",
            )
        return [item.embedding for item in rows]

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
