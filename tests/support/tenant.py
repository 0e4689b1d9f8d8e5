"""A tenant who does all that one can with a service, all at once, and checks what it is shown."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from http_client import Event
from patient_client import PatientClient, Tally
from shelf import DOCUMENTS, Known, Shelf, question

_JOB_S = 300
_PAUSE_S = 20  # in which answers may come from the cache: every write makes it forget them
_THINKING_S = 0.5  # at most, between what one does and does next
_MODES = ("hybrid", "dense", "keyword")


class Tenant:
    """Asks, searches, uploads and deletes."""

    def __init__(self, name: str, client: PatientClient, tally: Tally) -> None:
        self._shelf = Shelf(name)
        self._client = client
        self._tally = tally
        self._draw = random.Random(name)
        self._rests_until = 0.0

    async def begin(self) -> None:
        """Upload each document."""
        for n in range(DOCUMENTS):
            await self._upload(n)

    async def live(self, going: Callable[[], bool]) -> None:
        """Do everything at once, until `going` says no."""

        async def again(act: Callable[[], Awaitable[None]]) -> None:
            while going():
                await act()
                await asyncio.sleep(self._draw.uniform(0, _THINKING_S))

        acts = (self._write, self._ask, self._stream, self._leave, self._search, self._search)
        await asyncio.gather(*map(again, acts))

    async def end(self) -> None:
        """Look for each document."""
        for n, held in self._shelf.held.items():
            body = {"question": question(n), "where": {"document_id": held.id}}
            reply = await self._client.insist("search at the end", "/search", json=body)
            self._tally.wrong += self._shelf.wrong_end(n, reply.json()["results"][0]["hits"])

    async def _write(self) -> None:
        if time.monotonic() < self._rests_until:
            return
        acts = (self._upload, self._upload_twice, self._delete, self._upload_and_delete)
        for act, n in zip(acts, self._draw.sample(range(DOCUMENTS), len(acts)), strict=True):
            await (self._upload if self._shelf.held[n].deletion else act)(n)
        self._rests_until = time.monotonic() + _PAUSE_S

    async def _upload(self, n: int) -> None:
        await self._take_in(n, await self._sent(n))

    async def _upload_twice(self, n: int) -> None:
        await self._take_in(n, await self._sent(n), await self._sent(n))

    async def _upload_and_delete(self, n: int) -> None:
        job = await self._sent(n)
        await self._delete(n)
        job = await self._ended(job)
        if job["state"] != "done" and "deleted before" not in job["error"]:
            self._tally.wrong.append(f"an acknowledged upload is lost: {job}")

    async def _sent(self, n: int) -> Any:
        """The job, once an upload is acknowledged."""
        held, file = self._shelf.held[n], self._shelf.file(n)
        held.deletion = 0
        job = (await self._client.insist("upload", "/documents", files={"file": file})).json()
        held.sent, held.id = held.sent + 1, job["document_id"]
        return job

    async def _take_in(self, n: int, *jobs: Any) -> None:
        for job in jobs:
            ended = await self._ended(job)
            if ended["state"] != "done":
                self._tally.wrong.append(f"an acknowledged upload is lost: {ended}")
        self._shelf.held[n].done = self._shelf.held[n].sent

    async def _delete(self, n: int) -> None:
        path = f"/documents/{self._shelf.held[n].id}"
        job = await self._ended((await self._client.insist("delete", path, "DELETE")).json())
        if job["state"] != "done":
            self._tally.wrong.append(f"a deletion failed: {job}")
        self._shelf.deleted(n)

    async def _ended(self, job: Any) -> Any:
        """The job once it has ended."""
        until = time.monotonic() + _JOB_S
        while job["state"] in ("queued", "running") and time.monotonic() < until:
            await asyncio.sleep(0.2)
            job = (await self._client.insist("job", f"/jobs/{job['id']}", "GET")).json()
        return job

    async def _ask(self) -> None:
        body = self._body()
        for _ in range(2):  # the second time from the cache, if nothing was written meanwhile
            known = self._shelf.known()
            if reply := await self._client.send("query", "/query", json=body):
                self._check(reply.json(), known)

    async def _search(self) -> None:
        known, questions = self._shelf.known(), [self._question() for _ in range(3)]
        body = {"question": questions, "mode": self._draw.choice(_MODES)}
        if reply := await self._client.send("search", "/search", json=body):
            for result in reply.json()["results"]:
                self._tally.wrong += self._shelf.wrong_passages(result["hits"], known)

    async def _stream(self) -> None:
        known, event = self._shelf.known(), None
        async for event in self._client.events("stream", "/query", self._body(stream=True)):
            if event.name == "sources":
                self._tally.wrong += self._shelf.wrong_passages(event.data["citations"], known)
        match event:
            case Event("done", answer):
                self._check(answer, known)
            case Event("error", {"error": {"code": "overloaded"}}):  # the 503 of a stream
                self._tally.seen["streams that ended with an error, overloaded"] += 1
            case Event():
                self._tally.wrong.append(f"a stream ends with {event}")

    async def _leave(self) -> None:
        left = self._draw.randrange(1, 5)
        events = self._client.events("stream left", "/query", self._body(stream=True))
        async with aclosing(events):
            async for _ in events:
                left -= 1
                if not left:
                    break

    def _check(self, answer: Mapping[str, Any], known: Known) -> None:
        self._tally.wrong += self._shelf.wrong_passages(answer["citations"], known)
        self._tally.wrong += self._shelf.wrong_text(answer["answer"])
        seen = self._tally.seen
        seen["answers"] += 1
        seen["answers with citations"] += bool(answer["citations"])
        seen["answers written by the model"] += answer["model"] != "extractive"
        seen["answers from the cache"] += answer["cached"]
        for part in answer["degraded"]:
            seen[f"answers without the {part}"] += 1

    def _body(self, **more: Any) -> dict[str, Any]:
        return {"question": self._question(), "top_k": 2, **more}

    def _question(self) -> str:
        return question(self._draw.randrange(DOCUMENTS))
