"""What goes wrong with servers that speak OpenAI's API, for the generator and the embedder."""

from __future__ import annotations

import re

import anyio
import httpx2
import openai

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable

TRANSPORT_ERRORS = (
    openai.OpenAIError,
    # The client translates errors until the answer begins; those of the body pass through it.
    httpx2.HTTPError,
    anyio.EndOfStream,  # a TLS connection cut short
    OSError,
    ValueError,  # not JSON, not UTF-8, not the fields of the protocol
)
"""What reading from a server through the client may raise."""

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too large to process"
    r"|tokens?\b.*\b(exceed|longer|too (long|large|many)|maximum|limit)"
    r"|(exceed|longer|too (long|large|many)|less than|maximum|limit|at most)\b.*\btokens?",
    re.IGNORECASE,
)


def check_url(url: str, part: str) -> None:
    """ConfigError unless the setting `part`.url is a URL."""
    try:
        parsed = httpx2.URL(url)
        is_url = parsed.scheme in ("http", "https") and (parsed.port or 80) < 2**16
    except httpx2.InvalidURL:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{part}.url is {url!r}, not a URL" if url else f"{part}.url is not set",
            "set it to the server's URL, such as http://127.0.0.1:8000/v1",
        )


def translated(error: Exception, part: str, url: str) -> ModelError:
    """An error of TRANSPORT_ERRORS as this application's. `part` is the section of its settings."""
    if isinstance(error, openai.APIStatusError):
        return refusal(error.status_code, _message(error), part, url)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return ModelUnavailable(f"no server answers at {url}", f"start it, or set {part}.url")
    if isinstance(error, ValueError):
        return ModelUnavailable(
            f"{url} does not speak OpenAI's API", f"check {part}.url (it ends in /v1)"
        )
    return ModelUnavailable(f"{url} broke off ({type(cause).__name__})", "try again")


def refusal(status: int, said: str, part: str, url: str) -> ModelError:
    """What a server's error means. llama-server says "too large to process" with a 500."""
    said = " ".join(said.split())[:200]
    if status in (400, 413, 422, 500) and _TOO_LONG.search(said):
        setting = "generator.context_tokens" if part == "generator" else "ingest.chunk_tokens"
        return ContextTooLong(f"{url} finds the text too long ({said})", f"set {setting} lower")
    if status in (401, 403):
        return ModelError(f"{url} refused the key ({status})", f"set {part}.api_key")
    if status == 404:
        return ModelError(
            f"{url} does not know the model or the path ({said})",
            f"check {part}.url (it ends in /v1) and {part}.model",
        )
    failed = f"{url} failed ({said or status})"
    if status in (408, 409, 429) or status >= 500:
        return ModelUnavailable(failed, "try again, or look at the server's log")
    return ModelError(failed, f"check the settings {part}.*")


def _message(error: openai.APIStatusError) -> str:
    """The server's own words, without the page of HTML that a proxy may send instead."""
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body)
    text = str(body or "")
    return "" if text.lstrip().startswith("<") else text
