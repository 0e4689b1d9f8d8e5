"""Two tenants on one collection: neither sees, names or changes what is the other's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from commands import rag
from documents import ended, sources, taken_in, upload
from http_client import client, events, problem
from service import Service, new_key, service

QUESTION = "What is the code of the safe?"
NOTE = "The code of the safe in the back office is {}."
CODES = {"acme": "4711-ALPHA", "birch": "9022-BRAVO"}
WIDER: list[dict[str, Any]] = [
    {"$or": [{"tenant": "acme"}, {"tenant": "birch"}]},
    {"$or": [{"tenant": {"$exists": True}}, {"tenant": {"$exists": False}}]},
    {"$not": {"tenant": "nobody"}},
    {"$not": {"$and": [{"tenant": "acme"}, {"tenant": "birch"}]}},
    {"tenant": {"$ne": "nobody"}},
    {"tenant": {"$in": ["acme", "birch"]}},
    {"tenant": {"$not": {"$in": ["nobody"]}}},
    {"source": "upload/tenant=acme/safe.txt"},
    {"source": "upload/tenant=birch/safe.txt"},
    {"text": {"$exists": True}},
]


class Two(NamedTuple):
    """A service, a client of each tenant, and the jobs that took in their documents."""

    running: Service
    apis: dict[str, httpx2.Client]
    jobs: dict[str, Any]

    def pairs(self) -> list[tuple[str, httpx2.Client, str, str]]:
        """(tenant, its client, its code, the other's code) of both."""
        acme, birch = self.apis
        return [
            (acme, self.apis[acme], CODES[acme], CODES[birch]),
            (birch, self.apis[birch], CODES[birch], CODES[acme]),
        ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    data_dir = tmp_path_factory.mktemp("tenants") / "data"
    scopes = ("--scope", "read", "--scope", "write")
    acme = new_key(data_dir, *scopes, "--tenant", '{"tenant": "acme"}')
    birch = new_key(data_dir, *scopes, "--tenant", '{"tenant": {"$eq": "birch"}}')
    with (
        service(data_dir) as running,
        client(running.url, acme) as first,
        client(running.url, birch) as second,
    ):
        apis = {"acme": first, "birch": second}
        jobs = {}
        for tenant, api in apis.items():
            other = "birch" if tenant == "acme" else "acme"
            # The same name by both; and each says that its document is the other's.
            jobs[tenant] = taken_in(
                api, "safe.txt", NOTE.format(CODES[tenant]), metadata=f'{{"tenant": "{other}"}}'
            )
        yield Two(running, apis, jobs)
        assert "unexpected" not in running.stderr, running.stderr[-5000:]


def asked(api: httpx2.Client, question: str = QUESTION, **more: Any) -> str:
    """The whole reply as text, so that nothing in it is overlooked."""
    reply = api.post("/query", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    return reply.text


def test_each_is_answered_from_its_own_documents(two: Two) -> None:
    for _ in range(2):  # written, and from the cache
        for tenant, api, own, others in two.pairs():
            found = asked(api)
            assert own in found and others not in found
            assert f"upload/tenant={tenant}/safe.txt" in found
    assert '"cached":true' in found


def test_the_same_question_is_cached_for_each_alone(two: Two) -> None:
    question = "Which code opens the safe of the back office?"
    cached = []
    for _, api, own, others in two.pairs() * 2:
        reply = api.post("/query", json={"question": question})
        assert own in reply.text and others not in reply.text
        cached.append(reply.json()["cached"])
    assert cached == [False, False, True, True]


def test_streams_searches_and_completions_keep_to_it(two: Two) -> None:
    for _, api, own, others in two.pairs():
        with api.stream("POST", "/query", json={"question": QUESTION, "stream": True}) as reply:
            streamed = str(list(events(reply)))
        body = {"question": [QUESTION, "safe"], "mode": "keyword", "expand": 5, "top_k": 100}
        searched = api.post("/search", json=body).text
        message = {"role": "user", "content": QUESTION}
        chat = {"model": "rag", "messages": [message]}
        completed = api.post("/v1/chat/completions", json=chat).text
        told = api.post("/v1/chat/completions", json={**chat, "stream": True}).text
        for found in (streamed, searched, completed, told):
            assert own in found and others not in found


@pytest.mark.parametrize("where", WIDER, ids=str)
def test_no_filter_widens_it(two: Two, where: dict[str, Any]) -> None:
    for _, api, _, others in two.pairs():
        assert others not in asked(api, where=where)
        for mode in ("hybrid", "dense", "keyword"):
            body = {"question": QUESTION, "where": where, "mode": mode, "top_k": 100}
            reply = api.post("/search", json=body)
            assert reply.status_code == 200 and others not in reply.text


def test_a_filter_narrows_it(two: Two) -> None:
    for tenant, api, own, _ in two.pairs():
        assert own in asked(api, where={"tenant": tenant})
        other = {"tenant": {"$ne": tenant}}
        body = {"question": QUESTION, "where": other}
        assert api.post("/search", json=body).json()["results"][0]["hits"] == []


def test_the_same_file_name_is_two_documents_whatever_the_metadata_says(two: Two) -> None:
    assert two.jobs["acme"]["document_id"] != two.jobs["birch"]["document_id"]
    for tenant, api, _, _ in two.pairs():
        assert sources(api) == [f"upload/tenant={tenant}/safe.txt"]
        assert api.get("/collections/default").json()["chunks"] == 1


def test_the_others_document_and_job_are_not_there(two: Two) -> None:
    for tenant, api, own, others in two.pairs():
        (other,) = set(two.jobs) - {tenant}
        path = f"/documents/{two.jobs[other]['document_id']}"
        problem(api.get(path), 404, "unknown_document")
        problem(api.delete(path), 404, "unknown_document")
        problem(api.get(f"/jobs/{two.jobs[other]['id']}"), 404, "not_found")
        assert api.get(f"/jobs/{two.jobs[tenant]['id']}").json()["state"] == "done"
        assert own in asked(api) and others not in asked(api)
        assert sources(api) == [f"upload/tenant={tenant}/safe.txt"]


def test_the_others_answer_cannot_be_rated(two: Two) -> None:
    (_, acme, _, _), (_, birch, _, _) = two.pairs()
    answer = acme.post("/query", json={"question": QUESTION}).json()
    rating = {"answer_id": answer["request_id"], "rating": "down", "comment": "no"}
    problem(birch.post("/feedback", json=rating), 404, "not_found")
    assert acme.post("/feedback", json=rating).status_code == 201


def test_pages_searches_and_fields_keep_to_it(two: Two) -> None:
    for api in two.apis.values():
        taken_in(api, "index.txt", "An index.", metadata='{"own": "yes"}')
    cursors = {t: api.get("/documents?limit=1").json()["next"] for t, api in two.apis.items()}
    for tenant, api, *_ in two.pairs() * 2:  # counted, and from the cache
        for after in cursors.values():
            page = api.get("/documents", params={"after": after}).json()["documents"]
            assert all(f"tenant={tenant}/" in document["source"] for document in page)
        found = api.get("/documents", params={"search": "TENANT="}).json()["documents"]
        assert {f"tenant={tenant}/" in document["source"] for document in found} == {True}
        fields = {
            f["name"]: f["values"] for f in api.get("/collections/default/fields").json()["fields"]
        }
        assert fields["tenant"] == [{"value": tenant, "documents": len(found)}]
        assert fields["own"] == [{"value": "yes", "documents": 1}]
    for api in two.apis.values():
        (index,) = api.get("/documents", params={"search": "index.txt"}).json()["documents"]
        assert api.delete(f"/documents/{index['id']}").status_code == 200


def test_a_replaced_or_deleted_document_leaves_the_others_alone(two: Two) -> None:
    (_, acme, _, _), (_, birch, _, _) = two.pairs()
    for api, word in ((acme, "ALPHA"), (birch, "BRAVO")):
        taken_in(api, "door.txt", f"The word at the door is {word}.")
    question = "What is the word at the door?"
    job = taken_in(acme, "door.txt", "The word at the door is CHARLIE.")
    assert "CHARLIE" in asked(acme, question) and "BRAVO" in asked(birch, question)
    assert acme.delete(f"/documents/{job['document_id']}").status_code == 200
    assert "CHARLIE" not in asked(acme, question) and "BRAVO" in asked(birch, question)
    path = f"/documents/{two.jobs['birch']['document_id']}"
    assert birch.get(path).status_code == 200
    (gone,) = [
        record["id"]
        for record in birch.get("/documents").json()["documents"]
        if record["source"].endswith("door.txt")
    ]
    assert birch.delete(f"/documents/{gone}").status_code == 200


def test_a_name_cannot_be_that_of_the_others_document(two: Two) -> None:
    _, (_, birch, own, _) = two.pairs()
    for name in ("tenant=acme/safe.txt", "../tenant=acme/safe.txt", "upload/tenant=acme/safe.txt"):
        assert (
            taken_in(birch, name, NOTE.format(own))["document_id"]
            == (two.jobs["birch"]["document_id"])
        )
    assert CODES["acme"] in asked(two.apis["acme"])


def test_a_key_with_no_tenant_sees_all(two: Two) -> None:
    key = new_key(two.running.data_dir, "--scope", "admin")
    with client(two.running.url, key) as api:
        assert len([s for s in sources(api) if s.endswith("/safe.txt")]) == 2
        found = asked(api)
        assert all(code in found for code in CODES.values())
        assert api.get(f"/jobs/{two.jobs['acme']['id']}").status_code == 200
        job = ended(api, upload(api, "safe.txt", NOTE.format("0000-ZULU")))
        assert job["source"] == "upload/safe.txt"
    for _, api, _, _ in two.pairs():
        assert "ZULU" not in asked(api)


def test_a_tenant_that_says_nothing_of_its_documents_cannot_write(two: Two) -> None:
    tenant = '{"tenant": {"$in": ["acme", "birch"]}}'
    key = new_key(two.running.data_dir, "--scope", "write", "--scope", "read", "--tenant", tenant)
    with client(two.running.url, key) as api:
        files = {"file": ("note.txt", b"A note.")}
        problem(api.post("/documents", files=files), 403, "forbidden")
        assert all(code in asked(api) for code in CODES.values())


def test_a_key_for_one_collection_reaches_no_other_anywhere(two: Two) -> None:
    data_dir = two.running.data_dir
    everything = new_key(data_dir, "--scope", "admin")
    with client(two.running.url, everything) as api:
        theirs = taken_in(api, "plan.txt", "The plan is secret.", collection="theirs")
        taken_in(api, "plan.txt", "The plan is public.", collection="ours")
        answer = api.post("/query", json={"question": "the plan", "collection": "theirs"}).json()
    key = new_key(data_dir, "--scope", "read", "--scope", "write", "--collection", "ours")
    with client(two.running.url, key) as api:
        assert api.get("/collections").json() == {"collections": ["ours"], "default": None}
        assert [m["id"] for m in api.get("/v1/models").json()["data"]] == ["ours"]
        body = {"question": "What is the plan?"}
        assert "public" in api.post("/query", json={**body, "collection": "ours"}).text
        named = {"collection": "theirs"}
        rated = {"answer_id": answer["request_id"], "rating": "up"}
        messages = [{"role": "user", "content": "What is the plan?"}]
        document, where = f"/documents/{theirs['document_id']}", {"params": named}
        for reply in (
            api.post("/query", json={**body, **named}),
            api.post("/query", json=body),  # the default collection is none of its own either
            api.post("/query", json={**body, **named, "stream": True}),
            api.post("/search", json={**body, **named}),
            api.post("/search", json=body),
            api.get("/documents", **where),
            api.get("/documents"),
            api.get(document, **where),
            api.delete(document, **where),
            api.post("/documents", files={"file": ("plan.txt", b"Mine.")}, data=named),
            api.post("/documents", files={"file": ("plan.txt", b"Mine.")}),
            api.get("/collections/theirs"),
            api.get("/collections/theirs/fields"),
            api.get(f"/jobs/{theirs['id']}"),
            api.post("/feedback", json=rated),
            api.post("/v1/chat/completions", json={"model": "theirs", "messages": messages}),
            api.post("/v1/chat/completions", json={"model": "rag", "messages": messages}),
            api.get("/v1/models/theirs"),
        ):
            problem(reply, 403, "forbidden")


def test_scopes_hold(two: Two) -> None:
    data_dir = two.running.data_dir
    files = {"file": ("note.txt", b"A note.")}
    job = f"/jobs/{two.jobs['acme']['id']}"
    document = f"/documents/{two.jobs['acme']['document_id']}"
    with client(two.running.url, new_key(data_dir, "--scope", "read")) as api:
        for reply in (api.post("/documents", files=files), api.delete(document), api.get(job)):
            problem(reply, 403, "forbidden")
        assert api.get(document).status_code == 200
    with client(two.running.url, new_key(data_dir, "--scope", "write")) as api:
        body = {"question": QUESTION}
        for reply in (
            api.post("/query", json=body),
            api.post("/search", json=body),
            api.get("/documents"),
            api.get(document),
            api.get("/collections"),
            api.get("/collections/default/fields"),
            api.get("/metrics"),
            api.get("/health"),
        ):
            problem(reply, 403, "forbidden")
        assert api.get(job).status_code == 200


def test_a_revoked_key_stops_at_the_next_request(two: Two) -> None:
    key = new_key(two.running.data_dir)
    with client(two.running.url, key) as api:
        assert api.get("/collections").status_code == 200
        done = rag("--data-dir", two.running.data_dir, "keys", "revoke", key.split("_")[1])
        assert done.status == 0, done.err
        problem(api.get("/collections"), 401, "unauthenticated")
        problem(api.post("/query", json={"question": QUESTION}), 401, "unauthenticated")


def test_the_service_stays_closed_when_its_last_key_is_revoked(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    with service(tmp_path, until="/health/live") as running:
        assert rag("--data-dir", tmp_path, "keys", "revoke", key.split("_")[1]).status == 0
        with client(running.url) as api:
            problem(api.get("/collections"), 401, "unauthenticated")
