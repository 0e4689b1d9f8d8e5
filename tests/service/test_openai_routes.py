"""POST /v1/chat/completions and GET /v1/models, asked by the OpenAI SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from http_client import OFF_TOPIC, QUESTION
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from servers import RawServer, Reply, answer, stream, wait_until
from service import Service, ingest, new_key, sample_data, service

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sample_data(tmp_path_factory.mktemp("openai") / "data")) as started:
        yield started


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with sdk(running) as opened:
        yield opened


def sdk(running: Service, key: str = "EMPTY", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=retries)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def asked(client: openai.OpenAI, *messages: dict[str, Any], **more: Any) -> ChatCompletion:
    given: dict[str, Any] = {"model": "rag", "messages": messages or [user(QUESTION)], **more}
    completion = client.chat.completions.create(**given)
    assert isinstance(completion, ChatCompletion)
    return completion


def streamed(client: openai.OpenAI, question: str, **more: Any) -> list[ChatCompletionChunk]:
    given: dict[str, Any] = {"model": "rag", "messages": [user(question)], **more}
    return list(client.chat.completions.create(stream=True, **given))


def extra(model: Any, name: str) -> Any:
    """A field that is no part of OpenAI's API."""
    return model.model_extra[name]


def test_a_completion_is_the_answer_with_its_citations(
    running: Service, client: openai.OpenAI
) -> None:
    completion = asked(client)
    whole = httpx2.post(f"{running.url}/query", json={"question": QUESTION}, timeout=60).json()
    [choice] = completion.choices
    assert "Hold both arrow keys for 6 seconds" in (choice.message.content or "")
    assert choice.message.content == whole["answer"]
    assert extra(choice.message, "citations") == whole["citations"]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert completion.model == "default"
    found = extra(completion, "rag")
    assert found["statements"] == whole["statements"]
    assert not found["abstained"] and found["degraded"] == []
    assert found["collection_generation"] == whole["collection_generation"]
    assert completion.id == f"chatcmpl-{found['request_id']}"


def test_the_chunks_of_a_stream_are_the_same_answer(client: openai.OpenAI) -> None:
    for _ in range(2):  # written, and from the cache
        first, *texts, last, usage = streamed(
            client, QUESTION, stream_options={"include_usage": True}
        )
        assert first.choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in texts)
        whole = asked(client)
        assert text == whole.choices[0].message.content
        assert last.choices[0].finish_reason == "stop"
        assert all(chunk.choices[0].finish_reason is None for chunk in (first, *texts))
        citations = extra(whole.choices[0].message, "citations")
        assert extra(last.choices[0].delta, "citations") == citations
        assert extra(last, "rag")["statements"] == extra(whole, "rag")["statements"]
        assert usage.choices == [] and usage.usage is not None
        assert {chunk.id for chunk in (*texts, last, usage)} == {first.id}
    assert streamed(client, QUESTION)[-1].usage is None


def test_the_sdk_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="rag", messages=[user(QUESTION)]) as opened:  # type: ignore[list-item]
        opened.until_done()
        completion = opened.get_final_completion()
    message = completion.choices[0].message
    assert "Hold both arrow keys" in (message.content or "")
    assert extra(message, "citations")[0]["page"] == 3


def test_the_turns_before_are_history(client: openai.OpenAI) -> None:
    first = asked(client, user("What does the TK-40 cost?"))
    said = {"role": "assistant", "content": first.choices[0].message.content}
    completion = asked(
        client,
        {"role": "system", "content": "You are a pirate."},
        {"role": "assistant", "content": "Hello, what can I do for you?"},
        user("What does the TK-40 cost?"),
        said,
        user("And how long is its warranty?"),
    )
    assert "TK-40" in extra(completion, "rag")["search"]
    alone = asked(client, user("And how long is its warranty?"))
    assert "TK-40" not in extra(alone, "rag")["search"]


def test_a_conversation_may_be_long(client: openai.OpenAI) -> None:
    turns = [
        turn for _ in range(60) for turn in (user("Hello"), {**user("Hi"), "role": "assistant"})
    ]
    assert asked(client, *turns, user(QUESTION)).choices[0].message.content


def test_content_may_be_a_list_of_texts(client: openai.OpenAI) -> None:
    first, second = QUESTION.split(". ")
    parts = [{"type": "text", "text": f"{first}."}, {"type": "text", "text": second}]
    completion = asked(client, {"role": "user", "content": parts})
    assert "Hold both arrow keys" in (completion.choices[0].message.content or "")


def test_what_the_documents_do_not_say_is_abstained_from(client: openai.OpenAI) -> None:
    completion = asked(client, user(OFF_TOPIC))
    assert extra(completion, "rag")["abstained"]
    assert extra(completion.choices[0].message, "citations") == []
    assert "do not hold an answer" in (completion.choices[0].message.content or "")


def test_fields_that_mean_nothing_here_are_ignored(client: openai.OpenAI) -> None:
    more = {"user": "u", "seed": 1, "store": True, "n": 1, "extra_body": {"brand_new": {"a": [1]}}}
    assert asked(client, **more).choices[0].message.content


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("logprobs", True),
        ("stop", ["."]),
        ("temperature", 3),
        ("max_tokens", 0),
        ("messages", [{"role": "assistant", "content": "Hello"}]),
        ("messages", [user(" ")]),
        ("messages", [user("a\x00b")]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("messages", [{"role": "tool", "tool_call_id": "1", "content": "x"}, user(QUESTION)]),
        ("messages", []),
    ],
)
def test_what_would_be_answered_wrongly_is_refused_in_a_line(
    client: openai.OpenAI, field: str, value: Any
) -> None:
    given: dict[str, Any] = {"model": "rag", "messages": [user(QUESTION)], field: value}
    with pytest.raises(openai.UnprocessableEntityError, match=field) as caught:
        client.chat.completions.create(**given)
    assert caught.value.code == "invalid_request"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("model", ["gpt-4o", "nowhere", "../default", "Default"])
def test_a_model_that_is_no_collection_is_not_found(client: openai.OpenAI, model: str) -> None:
    for ask in (asked, streamed_alone):
        with pytest.raises(openai.NotFoundError, match="there is no collection"):
            ask(client, model=model)


def streamed_alone(client: openai.OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    return streamed(client, QUESTION, **more)


def test_collections_are_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["default"]
    assert client.models.retrieve("default").id == "default"
    assert client.models.retrieve("rag").id == "default"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nowhere")


def test_a_collection_that_is_called_like_the_default_goes_before_it(tmp_path: Path) -> None:
    data = sample_data(tmp_path / "data")
    note = tmp_path / "note.md"
    note.write_text("# Note\n\nThe balance charge of E-22 is named Aurora.\n", "utf-8")
    ingest(data, note, "--collection", "notes")
    with service(data, settings={"collection": "notes"}) as running, sdk(running) as client:
        assert asked(client, model="rag").model == "notes"
        assert asked(client, model="default").model == "default"
        assert client.models.retrieve("default").id == "default"


def test_any_key_will_do_where_there_are_none(running: Service) -> None:
    for key in ("EMPTY", "sk-anything"):  # the SDK cannot but send one
        with sdk(running, key) as client:
            assert client.models.list().data


def test_a_key_opens_its_collections_and_its_tenant_only(tmp_path: Path) -> None:
    data = sample_data(tmp_path / "data")
    note = tmp_path / "note.md"
    note.write_text("# Note\n\nThe lighthouse of Port Ellory is painted green.\n", "utf-8")
    ingest(data, note, "--collection", "notes", "--metadata", "tenant=other")
    acme = '{"tenant": "acme"}'
    keys = [
        new_key(data, "--collection", "notes"),
        new_key(data, "--collection", "notes", "--tenant", acme),
    ]
    question = user("Which colour is the lighthouse of Port Ellory?")
    with service(data) as running:
        for wrong in ("EMPTY", f"rag_{'0' * 16}_{'a' * 43}"):
            with sdk(running, wrong) as client, pytest.raises(openai.AuthenticationError):
                asked(client)
        with sdk(running, keys[0]) as client:
            assert [model.id for model in client.models.list()] == ["notes"]
            assert "green" in (
                asked(client, question, model="notes").choices[0].message.content or ""
            )
            for model in ("default", "rag"):
                with pytest.raises(openai.PermissionDeniedError):
                    asked(client, model=model)
            with pytest.raises(openai.PermissionDeniedError):
                client.models.retrieve("default")
        with sdk(running, keys[1]) as client:  # the note is another tenant's
            assert extra(asked(client, question, model="notes"), "rag")["abstained"]


def test_retries_of_the_sdk_wait_as_long_as_they_are_told(tmp_path: Path) -> None:
    settings = {"service.address_limit": "1/2second"}
    with service(sample_data(tmp_path / "data"), settings=settings) as running:
        with sdk(running) as client, pytest.raises(openai.RateLimitError) as caught:
            for _ in range(3):  # two of them are in one window
                client.models.list()
        assert caught.value.response.headers["retry-after"] in ("1", "2")
        with sdk(running, retries=3) as client:
            taken = [client.models.with_raw_response.list().retries_taken for _ in range(3)]
    assert sum(taken) > 0


def settings_for(engine: RawServer, **more: object) -> dict[str, object]:
    return {
        "generator.url": engine.url,
        "generator.model": "m",
        "generator.context_tokens": 4096,
        "answer.min_evidence": 0,
        **more,
    }


def test_the_prompt_is_ours_and_the_sampling_theirs(tmp_path: Path) -> None:
    written = stream(
        {"choices": [{"delta": {"content": "Hold both arrow keys [1]"}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": 7}},
        "[DONE]",
    )
    paths = {PATH: Reply(written)}
    with (
        RawServer(Reply(answer(404, {})), paths=paths) as engine,
        service(sample_data(tmp_path / "data"), settings=settings_for(engine)) as running,
        sdk(running) as client,
    ):
        completion = asked(
            client,
            {"role": "system", "content": "Answer like a pirate."},
            {"role": "developer", "content": "Answer like a pirate."},
            user(QUESTION),
            max_completion_tokens=33,
            temperature=0.7,
        )
    [body] = [body for path, body in engine.requests if path == PATH]
    assert "pirate" not in str(body)
    assert (body["max_tokens"], body["temperature"]) == (33, 0.7)
    assert completion.choices[0].finish_reason == "length"
    usage = completion.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (90, 7, 97)


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for one at a time, whose engine writes a few words and then nothing more."""
    reply = Reply(stream({"choices": [{"delta": {"content": "First words of it. "}}]}), "hang")
    with RawServer(Reply(answer(404, {})), paths={PATH: reply}) as engine:
        limits = {"service.concurrency": 1, "service.queue": 0, "service.deadline_s": 3}
        settings = settings_for(engine, **limits)
        data = sample_data(tmp_path_factory.mktemp("stuck") / "data")
        with service(data, settings=settings) as started:
            httpx2.post(f"{started.url}/search", json={"question": QUESTION}, timeout=60)  # warm
            yield started


def test_a_stream_that_is_closed_makes_room_for_the_next(stuck: Service) -> None:
    given: dict[str, Any] = {"model": "rag", "messages": [user(QUESTION)], "stream": True}
    with sdk(stuck) as client:
        first = client.chat.completions.create(**given)
        assert next(iter(first)).choices[0].delta.role == "assistant"
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**given)
        assert caught.value.status_code == 503 and caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        first.close()

        def admitted() -> bool:
            try:
                client.chat.completions.create(**given).close()
            except openai.InternalServerError:
                return False
            return True

        wait_until(admitted, 2)  # sooner than the deadline would


def test_what_fails_in_a_stream_is_raised_by_the_sdk(stuck: Service) -> None:
    with (
        sdk(stuck, retries=3) as client,  # the test before may hold the only place for a moment
        pytest.raises(openai.APIError, match="no answer within 3 s") as caught,
    ):
        streamed(client, QUESTION)
    assert caught.value.code == "overloaded"
    assert not isinstance(caught.value, openai.APIStatusError)  # it came within the stream
    body = {"model": "rag", "messages": [user(QUESTION)], "stream": True}
    lines = httpx2.post(f"{stuck.url}{PATH}", json=body, timeout=60).text.strip().splitlines()
    assert lines[-1].startswith('data: {"error":') and not any("event:" in line for line in lines)
