"""The same answers as tools of the Model Context Protocol: `search` and `ask`.

Over HTTP the server lies at /mcp of the service, under its keys, limits and collections, without
sessions, so that any worker answers any request. Over stdio it serves whoever has started it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from pydantic import Field, ValidationError
from starlette.datastructures import State

from rag import __version__
from rag.app import App
from rag.errors import InputError, RagError
from rag.filters import OPERATORS
from rag.service import answering, logs
from rag.service.callers import ANYONE, Caller
from rag.service.desk import Desk
from rag.service.errors import code_of, wrong
from rag.service.schemas import (
    AnswerOut,
    CollectionName,
    QueryIn,
    Question,
    ResultOut,
    SearchIn,
    Strict,
    TopK,
)

if TYPE_CHECKING:
    from fastapi import FastAPI
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult

    from rag.settings import Settings

Json: TypeAlias = dict[str, Any]

_INSTRUCTIONS = (
    "Answers from the documents of this organisation, each with the passages it rests on. "
    "`ask` writes an answer with markers such as [1] that lead to its sources; `search` gives the "
    "passages alone. An answer with `abstained` says that the documents do not hold one."
)


class Arguments(Strict):
    """What both tools take."""

    question: Question = Field(description="In full sentences or in keywords, in any language.")
    collection: CollectionName = None
    top_k: TopK = Field(default=5, description="How many passages to find.")
    where: dict[str, Any] | None = Field(
        default=None,
        description="Only passages whose fields fit, such as those of documents after 2023: "
        '{"year": {"$gte": 2024}, "lang": "en"}. Operators: ' + " ".join(OPERATORS),
    )


class FoundOut(ResultOut):
    """What `search` gives."""

    collection: str
    collection_generation: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, and whose it is."""

    desk: Desk
    caller: Caller
    state: State  # `id`; and what is noted for the log


@dataclass(frozen=True, slots=True)
class _Tool:
    title: str
    description: str
    output: Json
    call: Callable[[Visit, Arguments], Awaitable[tuple[str, Json]]]


async def _search(visit: Visit, given: Arguments) -> tuple[str, Json]:
    body = SearchIn(**given.model_dump())
    found = await answering.search(visit.desk, visit.caller, body, visit.state.id)
    [result] = found.pop("results")
    passages = [f"{_source(hit)}\n{hit['text']}" for hit in result["hits"]]
    return "\n\n".join(passages) or "Nothing was found.", {**result, **found}


async def _ask(visit: Visit, given: Arguments) -> tuple[str, Json]:
    body = QueryIn(**given.model_dump())
    question = answering.asked(visit.desk, visit.caller, body, visit.state.id)
    answer = await visit.desk.asking.answer(question)
    parts = [answer["answer"]]
    if answer["citations"]:
        parts.append("Sources:\n" + "\n".join(map(_quoted, answer["citations"])))
    if answer["notice"]:
        parts.append(f"Note: {answer['notice']}.")
    return "\n\n".join(parts), answer


_TOOLS = {
    "search": _Tool(
        "Search the documents",
        "Find the passages of the documents that are likeliest to answer a question, best first, "
        "each with its source. Use it to read what the documents themselves say.",
        FoundOut.model_json_schema(),
        _search,
    ),
    "ask": _Tool(
        "Ask the documents",
        "Answer a question from the documents alone. Markers such as [1] in the answer lead to its "
        "numbered sources; where the documents do not hold an answer it says so.",
        AnswerOut.model_json_schema(),
        _ask,
    ),
}


def installed() -> bool:
    """Whether the SDK is there: the extra `mcp`."""
    return find_spec("mcp") is not None


@asynccontextmanager
async def running(api: FastAPI) -> AsyncIterator[None]:
    """Until the end `api.state.mcp` answers what comes to /mcp, if the SDK is installed."""
    if not installed():
        yield
        return
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    desk: Desk = api.state.desk

    def visit(context: ServerRequestContext[Any, Any]) -> Visit:
        state: State = context.request.state  # type: ignore[union-attr]  # over HTTP there is one
        return Visit(desk, state.asker, state)

    # The SDK's own check of Host and Origin is off: the envelope makes it, for all routes.
    api.state.mcp = StreamableHTTPSessionManager(
        server(visit), stateless=True, max_request_body_size=desk.settings.max_body_kb * 1024
    )
    async with api.state.mcp.run():
        yield


def serve_stdio(settings: Settings) -> None:
    """Serve the process that has started this one, until it closes standard input."""
    logs.configure(settings.service.log_level, texts=settings.service.log_texts)
    # Otherwise Ctrl-C waits for the thread that reads standard input, and that for a line.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_stdio(settings))


async def _stdio(settings: Settings) -> None:
    from mcp.server.stdio import stdio_server

    desk = Desk(App(settings, logs.say))
    tools = server(lambda _: Visit(desk, ANYONE, State({"id": uuid4().hex})))
    with _stdout_to_stderr():
        await desk.start(work=False)
    async with aclosing(desk), stdio_server() as (read, write):  # which does the same
        await tools.run(read, write, tools.create_initialization_options())


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What libraries print while they load must not get between the messages."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def server(visit_of: Callable[[ServerRequestContext[Any, Any]], Visit]) -> Server[Any]:
    """A server with the two tools. `visit_of` says who asks."""
    from mcp.server.lowlevel import Server

    async def list_tools(context: ServerRequestContext[Any, Any], _: object) -> ListToolsResult:
        return await _listed(visit_of(context))

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        return await _called(visit_of(context), params.name, params.arguments or {})

    return Server(
        "rag",
        version=__version__,
        title="rag",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _listed(visit: Visit) -> ListToolsResult:
    """The tools, with the names of the collections that the caller may see."""
    from mcp_types import ListToolsResult, Tool, ToolAnnotations

    schema = Arguments.model_json_schema()
    names: list[str] = []
    with suppress(RagError):  # the tools are there even while the store is not
        names = await asyncio.to_thread(visit.desk.app.backend.collections)
    known = ", ".join(filter(visit.caller.sees, names))
    default = visit.desk.app.settings.collection
    schema["properties"]["collection"]["description"] = (
        f"Which documents to look in, by default {default}. There are: {known or 'none yet'}."
    )
    return ListToolsResult(
        tools=[
            Tool(
                name=name,
                title=tool.title,
                description=tool.description,
                input_schema=schema,
                output_schema=tool.output,
                annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
            )
            for name, tool in _TOOLS.items()
        ]
    )


async def _called(visit: Visit, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
    from mcp_types import CallToolResult, TextContent

    found: Json | None = None
    try:
        text, found = await _found(visit, name, arguments)
        visit.state.collection, visit.state.degraded = found["collection"], found["degraded"]
    except RagError as error:
        text, visit.state.failure = str(error), code_of(error)
    except Exception:
        logs.failed()
        text = f"something unexpected failed; in the log it has the id {visit.state.id}"
    content = TextContent(type="text", text=text)
    return CallToolResult(content=[content], structured_content=found, is_error=found is None)


async def _found(visit: Visit, name: str, arguments: Mapping[str, Any]) -> tuple[str, Json]:
    tool = _TOOLS.get(name)
    if tool is None:
        raise InputError(f"there is no tool {name!r}", f"there are {' and '.join(_TOOLS)}")
    try:
        given = Arguments.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(wrong(first["loc"], first), "see the schema of the tool") from error
    async with visit.desk.admission.within_deadline():
        return await tool.call(visit, given)


def _source(citation: Json) -> str:
    page = f", page {citation['page']}" if citation["page"] else ""
    title = citation["title"] or citation["source"]
    return f"[{citation['marker']}] {title}{page} ({citation['source']})"


def _quoted(citation: Json) -> str:
    quotes = (" ".join(citation["text"][start:end].split()) for start, end in citation["spans"])
    return "\n".join([_source(citation), *(f"    > {quote}" for quote in quotes)])
