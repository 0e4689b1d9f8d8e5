"""A server with a rerank call: vLLM, TEI, llama-server, Infinity, and Jina's and Cohere's own."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import httpx2
from pydantic import AliasChoices, BaseModel, Field, SecretStr, TypeAdapter

from rag.errors import ModelUnavailable
from rag.model_server import check_url

_FIRST_PAUSE_S = 0.2  # short: somebody is waiting for an answer
_NO_CONNECTION = (httpx2.ConnectError, httpx2.ConnectTimeout)


@dataclass(frozen=True, slots=True)
class _Api:
    """What a request looks like: the name of the texts, how many at most, and its other fields."""

    texts: str
    most: int
    fields: Mapping[str, Any]


_APIS = {
    # 32 is the default of --max-client-batch-size, and the server refuses more.
    "tei": _Api("texts", 32, {"raw_scores": True, "truncate": True}),
    "jina": _Api("documents", 1000, {"return_documents": False}),
    "cohere": _Api("documents", 1000, {}),
}


class HttpReranker:
    """Asks `url`/rerank. A failed connection and 5xx are tried again, `retries` times.

    `api` says whose call the server speaks: "tei", "cohere", or "jina", which vLLM, llama-server
    and Infinity speak too. The key goes with each request as a bearer token.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str = "",
        api: Literal["tei", "jina", "cohere"] = "jina",
        api_key: SecretStr | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """`options` are sent with each request, such as {"truncate_prompt_tokens": -1} for vLLM.

        Raises ConfigError.
        """
        check_url(url, "rerank")
        self.model = model or url
        self._named = {"model": model} if model and api != "tei" else {}
        self._url = url.rstrip("/")
        self._name = api
        self._api = _APIS[api]
        self._options = options or {}
        self._key = api_key.get_secret_value().strip() if api_key else ""
        self._timeout = timeout_s
        self._retries = retries

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """The server's scores, in the order of the texts. TEI's are logits, the others' as sent."""
        found: list[float] = []
        for start in range(0, len(texts), self._api.most):
            found += self._batch(question, list(texts[start : start + self._api.most]))
        return found

    def _batch(self, question: str, texts: list[str]) -> list[float]:
        body = {"query": question, self._api.texts: texts, **self._named, **self._api.fields}
        if self._name != "tei":
            body["top_n"] = len(texts)
        rows = sorted(self._asked(body | self._options), key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise ModelUnavailable(
                f"{self._url} gave {len(rows)} scores for {len(texts)} texts, or misnumbered them",
                "look at the server's log",
            )
        scores = [row.score for row in rows if row.score is not None and math.isfinite(row.score)]
        if len(scores) < len(texts):
            raise ModelUnavailable(
                f"{self._url} gave a score that is no number", "look at the server's log"
            )
        return scores

    def _asked(self, body: Mapping[str, Any]) -> list[_Row]:
        for attempt in range(self._retries + 1):
            try:
                response = self._client.post(f"{self._url}/rerank", json=body)
                response.raise_for_status()
                answer = _ANSWER.validate_json(response.content)
                return answer.results if isinstance(answer, _Results) else answer
            except (httpx2.HTTPError, ValueError) as error:
                if attempt == self._retries or not _passing(error):
                    raise self._failure(error) from error
            time.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1))
        raise AssertionError("the last attempt returns or raises")

    @cached_property
    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self._timeout, connect=min(5.0, self._timeout)),
            # A kept connection may be closed by the server just when it is used again.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def _failure(self, error: Exception) -> ModelUnavailable:
        url = self._url
        if isinstance(error, httpx2.HTTPStatusError):
            return self._refusal(error.response)
        if isinstance(error, _NO_CONNECTION):
            return ModelUnavailable(f"no server answers at {url}", "start it, or set rerank.url")
        if isinstance(error, httpx2.TimeoutException):
            return ModelUnavailable(
                f"{url} did not answer in {self._timeout:g} s",
                "lower rerank.candidates, or raise rerank.timeout_s",
            )
        if isinstance(error, ValueError):
            return ModelUnavailable(
                f"{url} does not speak the rerank call of {self._name}",
                "check rerank.url (what stands before /rerank) and rerank.api",
            )
        return ModelUnavailable(f"{url} broke off ({type(error).__name__})", "try again")

    def _refusal(self, response: httpx2.Response) -> ModelUnavailable:
        status, said = response.status_code, _said(response)
        if status in (401, 403, 498):  # 498 is Cohere's for a token that is not valid
            return ModelUnavailable(f"{self._url} refused the key ({status})", "set rerank.api_key")
        if status in (404, 405):
            return ModelUnavailable(
                f"{self._url} does not know the model or the path ({said or status})",
                "check rerank.url (what stands before /rerank), rerank.api and rerank.model",
            )
        return ModelUnavailable(
            f"{self._url} failed ({said or status})",
            "look at the server's log" if status >= 500 else "check the settings rerank.*",
        )


class _Row(BaseModel):
    index: int
    # None is how some servers write NaN.
    score: float | None = Field(validation_alias=AliasChoices("relevance_score", "score"))


class _Results(BaseModel):
    results: list[_Row]


_ANSWER: TypeAdapter[list[_Row] | _Results] = TypeAdapter(list[_Row] | _Results)


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, _NO_CONNECTION)


def _said(response: httpx2.Response) -> str:
    """The server's own words, without the page of HTML that a proxy may send instead."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return ""
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    return " ".join(str(body or "").split())[:200]
