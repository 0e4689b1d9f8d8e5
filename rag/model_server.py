"""What goes wrong with model servers over HTTP, in this application's words."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx2

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable

TRANSPORT_ERRORS = (
    httpx2.HTTPError,
    anyio.EndOfStream,  # a TLS connection cut short
    OSError,
    ValueError,  # not JSON, not UTF-8, not the fields of the protocol
)
"""What asking a server may raise."""

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too large to process"
    r"|`inputs` tokens|max_(num_tokens|seq_len|input_len)"
    r"|tokens?\b.*\b(exceed|longer|too (long|large|many)|maximum|limit)"
    r"|(exceed|longer|too (long|large|many)|less than|maximum|limit|at most)\b.*\btokens?",
    re.IGNORECASE,
)
# The length that is asked of the answer: a shorter prompt would change nothing.
_ANSWER_TOO_LONG = re.compile(r"max_(completion_|new_|output_)?tokens", re.IGNORECASE)
_OF_THE_PROMPT = re.compile(r"prompt|input|messages", re.IGNORECASE)
_REQUEST_IS_WRONG = re.compile(r"validation|template|invalid|BadRequest", re.IGNORECASE)


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


def translated(error: BaseException | None, part: str, url: str) -> ModelError:
    """Refused, or an error of TRANSPORT_ERRORS, as this application's.

    `part` is the section of its settings.
    """
    if isinstance(error, Refused):
        return refusal(error.status, error.said, part, url, error.wait_s)
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return ModelUnavailable(f"no server answers at {url}", f"start it, or set {part}.url")
    if isinstance(error, ValueError):
        return ModelUnavailable(
            f"{url} does not speak OpenAI's API", f"check {part}.url (it ends in /v1)"
        )
    return ModelUnavailable(f"{url} broke off ({type(error).__name__})", "try again")


class Refused(Exception):
    """An error over HTTP: its status, its words, and the seconds that it asks to wait."""

    def __init__(self, response: httpx2.Response) -> None:
        """`response` has been read."""
        self.status = response.status_code
        try:
            body = response.json()
        except ValueError:
            body = response.text
        self.said = complaint(body)[1]
        self.wait_s = _seconds(response.headers.get("retry-after", ""))
        super().__init__(f"{self.status} {self.said}")


def refusal(status: int, said: str, part: str, url: str, wait_s: float = 0) -> ModelError:
    """What a server's error means. `wait_s` is its Retry-After.

    llama-server says "too large to process" with a 500.
    """
    does_not_fit = too_long(status, said)
    said = " ".join(said.split())[:200]
    if does_not_fit:
        setting = "generator.context_tokens" if part == "generator" else "ingest.chunk_tokens"
        return ContextTooLong(f"{url} finds the text too long ({said})", f"set {setting} lower")
    if status in (401, 403):
        return ModelError(f"{url} refused the key ({status})", f"set {part}.api_key")
    if status == 404:
        return ModelError(
            f"{url} does not know the model or the path ({said})",
            f"check {part}.url (it ends in /v1) and {part}.model",
        )
    when = f" in {wait_s:.0f} s" if wait_s else ""
    if status == 429:
        return ModelUnavailable(f"{url} has too much to do ({said or status})", f"try again{when}")
    failed = f"{url} failed ({said or status})"
    if status in (408, 409, 424) or status >= 500:  # TGI says 424 when the generation failed
        return ModelUnavailable(failed, f"try again{when}, or look at the server's log")
    return ModelError(failed, f"check the settings {part}.*")


def too_long(status: int, said: str) -> bool:
    """Whether a server's error says that the text does not fit the model.

    Not so if it is about the answer's length alone.
    """
    if _ANSWER_TOO_LONG.search(said) and not _OF_THE_PROMPT.search(said):
        return False
    return status in (400, 413, 422, 500) and bool(_TOO_LONG.search(said))


def complaint(body: Any) -> tuple[int, str]:
    """The status and the words in the body of an error, of whatever shape.

    Status 500 where the body does not tell. A page of HTML, which a proxy may send, has no words.
    """
    if not isinstance(body, dict):
        text = str(body or "")
        return 500, "" if text.lstrip().startswith("<") else text
    inner = body.get("error")
    if isinstance(inner, dict):
        return complaint(inner)
    said = inner or body.get("message") or body.get("detail") or body or ""
    if isinstance(said, list):  # FastAPI's list of what is wrong, and where
        said = "; ".join(
            f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg')}"
            if isinstance(item, dict)
            else str(item)
            for item in said
        )
    code = str(body.get("http_status_code") or body.get("code"))
    kind = str(body.get("error_type") or body.get("type"))
    if code.isdecimal():
        return int(code), str(said)
    if "overloaded" in kind:
        return 429, str(said)
    return 400 if _REQUEST_IS_WRONG.search(kind) else 500, str(said)


def _seconds(retry_after: str) -> float:
    """What the header says, a number or a date."""
    if retry_after.isdecimal():
        return float(retry_after)
    with suppress(ValueError, TypeError):  # TypeError: a date without its zone
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return 0.0
