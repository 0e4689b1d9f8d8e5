"""The service, as the page asks it: over HTTP, and in no other way."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import httpx2

from rag.errors import RagError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json: TypeAlias = dict[str, Any]

# Between two pieces of an answer a heartbeat comes, by default every 15 s.
_TIMEOUT = httpx2.Timeout(60, connect=5)
_UPLOAD_S = 600
AWAY = (
    "unreachable",
    "interrupted",
    "no_service",
)  # codes of errors that pass once the service is there


class ServiceError(RagError):
    """What the service refused, or that it does not answer.

    `code` is that of its reply; "unreachable" where there is none, "interrupted" where it broke
    off, "no_service" and "refused" where something else replies.
    """

    def __init__(self, message: str, hint: str, code: str, retry_after: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Service:
    """A client of a service. Safe between threads. Every method raises ServiceError."""

    def __init__(self, url: str, key: str = "", socket: Path | None = None) -> None:
        """`socket` is a UNIX socket on which it listens instead."""
        self.url = url.rstrip("/")
        self.key = key
        self._socket = str(socket) if socket else None
        transport = httpx2.HTTPTransport(uds=self._socket) if socket else None
        self._http = httpx2.Client(
            base_url=self.url, timeout=_TIMEOUT, transport=transport, cookies=_no_cookies()
        )

    def with_key(self, key: str) -> Service:
        """The same connections, with another key."""
        same = copy.copy(self)
        same.key = key
        return same

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._http.close()

    def ready(self) -> bool:
        """Whether it answers, and can answer questions."""
        try:
            with _translated(self.url):
                return self._http.get("/health/ready", timeout=5).status_code == 200
        except ServiceError:
            return False

    async def ask(
        self, body: Mapping[str, Any], *, fresh: bool = False
    ) -> AsyncGenerator[tuple[str, Json]]:
        """The events of POST /query as they come. `fresh`: no answer from the cache.

        Closing it stops the generation. An "error" event is raised.
        """
        headers = {**self._headers(), **({"Cache-Control": "no-cache"} if fresh else {})}
        transport = httpx2.AsyncHTTPTransport(uds=self._socket) if self._socket else None
        asked = {**body, "stream": True}
        with _translated(self.url):
            async with (
                httpx2.AsyncClient(timeout=_TIMEOUT, transport=transport) as http,
                http.stream("POST", f"{self.url}/query", json=asked, headers=headers) as reply,
            ):
                if reply.status_code != 200:
                    await reply.aread()
                    raise _refused(reply)
                async for event in httpx2.EventSource(reply):
                    data: Any = event.json()
                    if event.event == "error":
                        raise _problem(data["error"])
                    yield event.event, data

    def scopes(self) -> list[str]:
        """What the key allows: of "read", "write" and "admin"."""
        scopes: list[str] = self._asked("GET", "/caller")["scopes"]
        return scopes

    def search(self, body: Mapping[str, Any]) -> Json:
        """What was found for one question, with the legs of each hit, and in which generation."""
        found = self._asked("POST", "/search", json=body)
        return {**found["results"][0], "collection_generation": found["collection_generation"]}

    def feedback(self, answer_id: str, rating: str, comment: str) -> None:
        """Rate an answer "up" or "down"; again to change it."""
        body = {"answer_id": answer_id, "rating": rating, "comment": comment}
        self._asked("POST", "/feedback", json=body)

    def collections(self) -> tuple[list[str], str]:
        """The collections that the key sees, and the one asked where none is named."""
        found = self._asked("GET", "/collections")
        return found["collections"], found["default"]

    def collection(self, name: str) -> Json:
        """What a collection says of itself."""
        return self._asked("GET", f"/collections/{_quoted(name)}")

    def fields(self, collection: str) -> list[Json]:
        """The metadata that its documents have."""
        fields: list[Json] = self._asked("GET", f"/collections/{_quoted(collection)}/fields")[
            "fields"
        ]
        return fields

    def documents(
        self, collection: str, search: str = "", after: str | None = None, limit: int = 25
    ) -> tuple[list[Json], str | None]:
        """A page of documents, and where the next one begins; None after the last."""
        asked = {"collection": collection, "search": search, "after": after, "limit": limit}
        found = self._asked("GET", "/documents", params=_given(asked))
        return found["documents"], found["next"]

    def upload(self, collection: str, name: str, file: IO[bytes]) -> Json:
        """Have a file taken in; the job that does it."""
        return self._asked(
            "POST",
            "/documents",
            files={"file": (name, file)},
            data={"collection": collection},
            timeout=_UPLOAD_S,
        )

    def ingest(self, collection: str, document: str) -> Json:
        """Have a document taken in again; the job that does it."""
        path = f"/documents/{_quoted(document)}/ingest"
        return self._asked("POST", path, params={"collection": collection})

    def delete(self, collection: str, document: str) -> Json:
        """Delete a document; the job that does it, often done already."""
        path = f"/documents/{_quoted(document)}"
        return self._asked("DELETE", path, params={"collection": collection})

    def job(self, job: str) -> Json:
        """How far a job is."""
        return self._asked("GET", f"/jobs/{_quoted(job)}")

    def jobs(self, collection: str, limit: int = 50) -> list[Json]:
        """The jobs of a collection, newest first."""
        asked = {"collection": collection, "limit": limit}
        jobs: list[Json] = self._asked("GET", "/jobs", params=asked)["jobs"]
        return jobs

    def picture(
        self, collection: str, document: str, page: int, marks: list[str]
    ) -> tuple[bytes, int]:
        """A page of a PDF as PNG, and how many of the texts are marked there."""
        with _translated(self.url):
            reply = self._http.get(
                f"/documents/{_quoted(document)}/pages/{page}",
                params={"collection": collection, "mark": marks},
                headers=self._headers(),
            )
        if reply.status_code != 200:
            raise _refused(reply)
        return reply.content, int(reply.headers.get("X-Marks-Found", 0))

    def datasets(self) -> list[Json]:
        """The sets of questions that it can evaluate."""
        datasets: list[Json] = self._asked("GET", "/datasets")["datasets"]
        return datasets

    def evaluate(self, body: Mapping[str, Any]) -> Json:
        """Begin an evaluation."""
        return self._asked("POST", "/evaluations", json=body)

    def evaluations(self) -> list[Json]:
        """All that there are, newest first, without their results."""
        runs: list[Json] = self._asked("GET", "/evaluations")["evaluations"]
        return runs

    def evaluation(self, run: str, baseline: str | None = None) -> Json:
        """One, whole; compared with another."""
        asked = _given({"baseline": baseline})
        return self._asked("GET", f"/evaluations/{_quoted(run)}", params=asked)

    def end_evaluation(self, run: str) -> None:
        """Stop an evaluation, and forget it."""
        self._asked("DELETE", f"/evaluations/{_quoted(run)}")

    def _asked(self, method: str, path: str, **given: Any) -> Json:
        with _translated(self.url):
            reply = self._http.request(method, path, headers=self._headers(), **given)
        if not reply.is_success:
            raise _refused(reply)
        found: Json = reply.json() if reply.content else {}
        return found

    def _headers(self) -> dict[str, str]:
        # Such a header cannot be sent, and what refuses to would show the key.
        if not (self.key.isascii() and self.key.isprintable()):
            raise ServiceError("the key is wrong", "enter another", "unauthenticated")
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise ServiceError(f"{url}: {error}", "see that it runs", "unreachable") from error
    except httpx2.HTTPError as error:
        raise ServiceError(
            f"{url}: {type(error).__name__}", "see that it runs", "interrupted"
        ) from error


def _refused(reply: httpx2.Response) -> ServiceError:
    try:
        return _problem(reply.json()["error"], reply.headers.get("Retry-After", ""))
    except (ValueError, LookupError, TypeError):  # not from the service: a proxy, another server
        what = f"{reply.url.scheme}://{reply.url.netloc.decode()}: HTTP {reply.status_code}"
        away = reply.status_code in (404, 502, 503, 504)
        return ServiceError(
            what, "see that the address is that of rag serve", "no_service" if away else "refused"
        )


def _no_cookies() -> CookieJar:
    """One that keeps none: the connections are shared by all who open the page."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def _problem(error: Mapping[str, str], retry_after: str = "") -> ServiceError:
    return ServiceError(error["message"], error["hint"], error["code"], retry_after)


def _given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _quoted(part: str) -> str:
    return quote(part, safe="")
