"""`rag mcp`, and /mcp of the service, asked by the client of the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from commands import rag
from http_client import OFF_TOPIC, QUESTION, problem
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent
from servers import RawServer, Reply, answer, stream, wait_until
from service import Service, ingest, new_key, sample_data, service

Mode = Literal["auto", "legacy"]
MODES: tuple[Mode, ...] = ("auto", "legacy")  # with and without the handshake of older clients
ENGINE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sample_data(tmp_path_factory.mktemp("mcp") / "data")) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for keys. Its collection `notes` is of two tenants."""
    folder = tmp_path_factory.mktemp("guarded")
    data = sample_data(folder / "data")
    notes = folder / "notes"
    notes.mkdir()
    for tenant, colour in (("acme", "green"), ("other", "crimson")):
        text = f"---\ntenant: {tenant}\n---\nThe lighthouse of Port Ellory is painted {colour}.\n"
        (notes / f"{tenant}.md").write_text(text, "utf-8")
    ingest(data, notes, "--collection", "notes")
    new_key(data)
    with service(data) as started:
        yield started


def over_stdio(data_dir: Path, mode: Mode) -> Client:
    arguments = ["-m", "rag.cli", "--data-dir", str(data_dir), "mcp"]
    command = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    return Client(command, mode=mode)


@asynccontextmanager
async def over_http(running: Service, mode: Mode = "auto", key: str = "") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport = streamable_http_client(f"{running.url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


async def called(client: Client, tool: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """The text and the structure that a tool gives; the client checks it by its schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return text_of(result), result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The line that the error of a tool is."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error and result.structured_content is None
    assert "\n" not in text_of(result) and "Traceback" not in text_of(result)
    return text_of(result)


async def check_tools(client: Client) -> None:
    """What holds however one speaks with it."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "ask"}
    for tool in tools.values():
        assert tool.description and tool.output_schema
        properties = tool.input_schema["properties"]
        assert set(properties) == {"question", "collection", "top_k", "where"}
        assert tool.input_schema["required"] == ["question"]
        assert properties["top_k"]["default"] == 5
        assert "There are: default." in properties["collection"]["description"]

    text, found = await called(client, "ask", question=QUESTION)
    assert "Hold both arrow keys for 6 seconds" in found["answer"] and not found["abstained"]
    said, _, sources = text.partition("\n\nSources:\n")
    assert said == found["answer"]
    cited = found["citations"][0]
    assert sources.startswith(f"[{cited['marker']}] {cited['title']}, page 3 ({cited['source']})")
    start, end = cited["span"]
    assert f"    > {' '.join(cited['text'][start:end].split())}" in sources

    text, found = await called(client, "search", question=QUESTION, top_k=2)
    assert [hit["marker"] for hit in found["hits"]] == [1, 2]
    assert all(hit["text"] in text and hit["source"] in text for hit in found["hits"])
    _, narrow = await called(client, "search", question="warranty", where={"source": "nowhere"})
    assert narrow["hits"] == []

    text, found = await called(client, "ask", question=OFF_TOPIC)
    assert found["abstained"] and "Sources" not in text

    assert "'nowhere'" in await refused(client, "ask", question="x", collection="nowhere")
    assert "$bad" in await refused(client, "search", question="x", where={"a": {"$bad": 1}})
    assert "top_k" in await refused(client, "search", question="x", top_k=1_000)
    assert "question" in await refused(client, "ask", question=" ")
    assert "mode: no such field" in await refused(client, "ask", question="x", mode="dense")
    assert "'tell'" in await refused(client, "tell")


@pytest.mark.parametrize("mode", MODES)
async def test_the_tools_over_stdio(tmp_path: Path, mode: Mode) -> None:
    async with over_stdio(sample_data(tmp_path / "data"), mode) as client:
        await check_tools(client)


@pytest.mark.parametrize("mode", MODES)
async def test_the_tools_over_http(running: Service, mode: Mode) -> None:
    async with over_http(running, mode) as client:
        await check_tools(client)


async def test_what_they_give_is_what_the_service_gives(running: Service) -> None:
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as http:
        answered = (await http.post("/query", json={"question": QUESTION})).json()
        searched = (await http.post("/search", json={"question": QUESTION, "top_k": 3})).json()
    async with over_http(running) as client:
        _, answer = await called(client, "ask", question=QUESTION)
        _, found = await called(client, "search", question=QUESTION, top_k=3)
    assert set(answer) == set(answered)
    for name in ("answer", "citations", "statements", "collection_generation"):
        assert answer[name] == answered[name]
    assert found["hits"] == searched["results"][0]["hits"]
    assert found["collection_generation"] == searched["collection_generation"]


NOISY = """
import os
import rag.app

load = rag.app.App.generator.fget

def noisy(app):
    print("noise", flush=True)
    os.write(1, b"noise\\n")
    return load(app)

rag.app.App.generator = property(noisy)
"""


def test_nothing_but_messages_goes_to_stdout_and_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    data = sample_data(tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-m", "rag.cli", "--data-dir", str(data), "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    client = {"protocolVersion": "2025-06-18", "capabilities": {}}
    client["clientInfo"] = {"name": "test", "version": "1"}
    ask = {"name": "ask", "arguments": {"question": QUESTION}}
    with process:
        assert process.stdin and process.stdout and process.stderr
        for n, method, params in ((1, "initialize", client), (2, "tools/call", ask)):
            message = {"jsonrpc": "2.0", "id": n, "method": method, "params": params}
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            assert reply["id"] == n and "result" in reply, reply
        process.stdin.close()
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert "noise" in process.stderr.read()


def test_without_a_key_there_is_nothing_to_see(guarded: Service) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    wrong = {"Authorization": f"Bearer rag_{'0' * 16}_{'a' * 43}"}
    for headers in ({}, wrong):
        reply = httpx2.post(f"{guarded.url}/mcp", json=message, headers=headers)
        problem(reply, 401, "unauthenticated")


async def test_a_key_opens_its_collections_only(guarded: Service) -> None:
    key = new_key(guarded.data_dir, "--collection", "notes")
    for mode in MODES:
        async with over_http(guarded, mode, key) as client:
            [tool, _] = (await client.list_tools()).tools
            told = tool.input_schema["properties"]["collection"]["description"]
            assert told.endswith("There are: notes.")
            _, found = await called(client, "search", question="lighthouse", collection="notes")
            assert len(found["hits"]) == 2
            for name in ("ask", "search"):
                line = await refused(client, name, question=QUESTION)
                assert "not for collection 'default'" in line


async def test_a_tenant_cannot_be_left(guarded: Service) -> None:
    key = new_key(guarded.data_dir, "--tenant", '{"tenant": "acme"}')
    question = "Which colour is the lighthouse of Port Ellory painted?"
    escapes: list[Any] = [None, {"tenant": "other"}, {"$or": [{"tenant": "other"}, {"page": 1}]}]
    for mode in MODES:
        async with over_http(guarded, mode, key) as client:
            for where in escapes:
                given = {"question": question, "collection": "notes", "where": where}
                for tool in ("search", "ask"):
                    text, found = await called(client, tool, **given)
                    assert "crimson" not in text + json.dumps(found)
            text, _ = await called(client, "ask", question=question, collection="notes")
            assert "green" in text


async def test_a_key_that_may_only_write_is_refused(guarded: Service) -> None:
    key = new_key(guarded.data_dir, "--scope", "write")
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx2.post(f"{guarded.url}/mcp", json=message, headers=headers)
    problem(reply, 403, "forbidden")


def test_a_page_of_another_site_cannot_speak_with_it(running: Service) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        reply = httpx2.post(f"{running.url}/mcp", json=message, headers=headers)
        problem(reply, 403, "forbidden")
    for method in ("GET", "DELETE"):  # there are no sessions to listen to, or to end
        reply = httpx2.request(method, f"{running.url}/mcp")
        assert reply.status_code == 405 and reply.headers["Allow"] == "POST"


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_goes_away_makes_room_for_the_next(tmp_path: Path, mode: Mode) -> None:
    reply = Reply(stream({"choices": [{"delta": {"content": "First words of it. "}}]}), "hang")
    with RawServer(Reply(answer(404, {})), paths={ENGINE: reply}) as engine:
        settings = {
            "generator.url": engine.url,
            "generator.model": "m",
            "generator.context_tokens": 4096,
            "answer.min_evidence": 0,
            "service.concurrency": 1,
            "service.queue": 0,
        }
        with service(sample_data(tmp_path / "data"), settings=settings) as running:

            def is_asked() -> bool:
                return any(path == ENGINE for path, _ in engine.requests)

            def is_free() -> bool:
                body = {"question": QUESTION}
                return httpx2.post(f"{running.url}/search", json=body, timeout=60).is_success

            async with over_http(running, mode) as client:
                asking = asyncio.create_task(client.call_tool("ask", {"question": QUESTION}))
                await asyncio.to_thread(wait_until, is_asked, 60)
                assert "too many requests" in await refused(client, "search", question=QUESTION)
                asking.cancel()
            await asyncio.to_thread(wait_until, is_free, 10)


async def test_http_is_the_service_itself(tmp_path: Path) -> None:
    data = sample_data(tmp_path / "data")
    with service(data, command="mcp --http") as running:
        async with over_http(running) as client:
            await called(client, "search", question=QUESTION)
        assert httpx2.get(f"{running.url}/collections").json() == {
            "collections": ["default"],
            "default": "default",
        }


def test_http_asks_for_keys_where_others_can_reach_it(tmp_path: Path) -> None:
    done = rag("--data-dir", tmp_path, "mcp", "--http", "--host", "0.0.0.0", "--port", "0")
    assert done.status == 2 and "there are no keys" in done.error
    done = rag("--data-dir", tmp_path, "mcp", "--port", "1")
    assert done.status == 2 and "add --http" in done.error


WITHOUT_SDK = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name == "mcp" else found(name, path, target)

PathFinder.find_spec = find_spec
"""


def test_without_the_sdk_the_service_runs_and_the_command_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_SDK)
    done = rag("--data-dir", tmp_path, "mcp", PYTHONPATH=str(tmp_path))
    assert done.status == 2 and "pip install 'ragline[mcp]'" in done.error
    data = sample_data(tmp_path / "data")
    with service(data, PYTHONPATH=str(tmp_path)) as running:
        problem(httpx2.post(f"{running.url}/mcp", json={}), 404, "not_found")
        assert httpx2.get(f"{running.url}/collections").status_code == 200
