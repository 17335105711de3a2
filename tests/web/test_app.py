"""The application, on every store: JSON, streams, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from itertools import product
from typing import Any, Literal

import pytest
from starlette.requests import Request
from tests.conftest import StoreMaker
from tests.support import STAGES, Reading, Thinking, Writing, eventually, everything, within
from tests.web.asgi import Answer, Client, Message, messages_of

from durable_batches import (
    BatchClient,
    BatchId,
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    StoreUnavailableError,
    current_activity,
    durable_activity,
    enter_stage,
    workflow,
)
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord
from durable_batches.lifecycle.timeline import TimelineFold
from durable_batches.testing import ManualClock
from durable_batches.web import Access, WebApp, api, create_app, event_json, event_of, timelines

HOSTILE = [
    "</script><script>alert(1)</script>",
    'a\r\nevent: x\r\n"quoted"',
    "a/../b",
    "..",
    ".",
    "\x1b[31mred",
    "é\u202e",
]


@dataclass
class Scene:
    """A batch of which one document is held, one fails and one succeeds, and the application that shows it."""

    batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None]
    app: WebApp
    client: Client
    gate: asyncio.Event

    async def submit(self, *documents: str, batch_id: str = "batch", **labels: str) -> str:
        return await self.batches.submit(documents, batch_id=batch_id, document_id=str)

    async def update(self, changes: Mapping[str, Any]) -> Answer:
        body = json.dumps(changes).encode()
        return await self.client.post("/batches/batch/update", {"content-type": "application/json"}, body)

    async def until(self, batch_id: str, **counts: int) -> None:
        """Wait for these counts, when all documents have entered their stage."""
        async for snapshot in self.batches.watch(batch_id, interval=timedelta()):
            entered = snapshot.stages[1].current == snapshot.counts.total
            if entered and all(getattr(snapshot.counts, name) == count for name, count in counts.items()):
                return


@pytest.fixture
async def scene(open_store: StoreMaker) -> AsyncGenerator[Scene]:
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def run(document: str) -> str:
        enter_stage(Thinking)
        if document.startswith("held"):
            await gate.wait()
        if document.startswith("bad"):
            raise ValueError(f"not {document}")
        return document.upper()

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        app = create_app(batches, allow_anonymous=True)
        yield Scene(batches, app, Client(app), gate)
        gate.set()


async def test_a_batch_is_shown(scene: Scene) -> None:
    await scene.submit("held", "bad", "good")
    await scene.until("batch", running=1, succeeded=1, failed=1)
    answer = await scene.client.get("/batches/batch")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["durable-batches-schema"] == "1"
    shown = answer.json
    assert shown["url"] == "batches/batch"
    assert shown["state"] == {"tag": "thinking", "done": 2, "total": 3}
    assert shown["counts"]["failed"] == 1
    listed = (await scene.client.get("/batches")).json
    assert listed["next"] is None
    (batch,) = listed["batches"]
    changing = {"eta", "documents_per_second"}  # reckoned anew with each look
    assert {name for name in batch if batch[name] != shown[name]} <= changing


async def test_everything_about_it_is_shown(scene: Scene) -> None:
    await scene.submit("held", "bad", "good")
    await scene.until("batch", running=1, succeeded=1, failed=1)
    documents = (await scene.client.get("/batches/batch/documents?limit=2")).json
    assert [document["document_id"] for document in documents["documents"]] == ["held", "bad"]
    assert documents["documents"][1]["failure"]["error"] == "not bad"
    assert documents["documents"][1]["document"] is None
    rest = (await scene.client.get(f"/batches/batch/documents?payloads=true&after={documents['next']}")).json
    assert [(each["document"], each["result"]) for each in rest["documents"]] == [("good", "GOOD")]
    assert rest["next"] is None
    failed = (await scene.client.get("/batches/batch/documents?status=failed")).json
    assert [document["document_id"] for document in failed["documents"]] == ["bad"]
    errors = (await scene.client.get("/batches/batch/errors")).json
    assert [(group["count"], group["message"]) for group in errors["groups"]] == [(1, "not bad")]
    why = (await scene.client.get("/batches/batch/explain")).json
    assert why["reasons"][0]["tag"] == "running"
    assert len(why["sentences"]) == len(why["reasons"])


async def test_what_a_batch_spends_is_shown_exactly() -> None:
    @durable_activity
    async def ask(document: str) -> str:
        current_activity().spend(tokens=9, cost=Decimal(document), model="small")
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        client = Client(create_app(batches, allow_anonymous=True))
        await batches.result(await batches.submit(["0.0000001", "1E+2"], batch_id="batch"))
        spent = (await client.get("/batches/batch/spent")).json
        assert spent["total"] == {"tokens": 18, "cost": "100.0000001"}
        assert spent["by_model"]["small"]["cost"] == "100.0000001"
        assert (await client.get("/batches/batch")).json["spent"] == spent["total"]


async def test_no_more_documents_are_read_than_are_shown() -> None:
    """Their payloads may be large."""
    limits: list[int] = []

    class Counting(MemoryStore):
        async def documents(self, *args: Any, limit: int, **options: Any) -> Sequence[DocumentRecord]:
            limits.append(limit)
            return await super().documents(*args, limit=limit, **options)

    @workflow(STAGES, name="quick")
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=Counting(), max_in_flight=0) as batches:
        await batches.submit(["a", "b", "c", "d"], batch_id="batch", document_id=str)
        client = Client(create_app(batches, allow_anonymous=True))
        limits.clear()
        shown = (await client.get("/batches/batch/documents?limit=2&payloads=true")).json
        assert ([each["document"] for each in shown["documents"]], limits) == (["a", "b"], [3])
        assert (await client.get(f"/batches/batch/documents?limit=2&after={shown['next']}")).json["next"] is None


async def test_a_page_of_large_documents_has_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_PAYLOAD_CHARACTERS", 10_000)
    held = 0

    class Counting(MemoryStore):
        async def documents(self, *args: Any, limit: int, **options: Any) -> Sequence[DocumentRecord]:
            nonlocal held
            found = await super().documents(*args, limit=limit, **options)
            held = max(held, len(found))
            return found

    @workflow(STAGES, name="quick")
    async def run(document: str) -> str:
        return document

    documents = [name * 4_000 for name in "abc"] + ["d" * 20_000, *"efghijklmnopqrstuvw"]
    async with BatchOrchestrator(run, store=Counting(), max_in_flight=0) as batches:
        await batches.submit(documents, batch_id="batch", document_id=lambda document: document[0])
        client = Client(create_app(batches, allow_anonymous=True))
        pages: list[str] = []
        after: int | None = -1
        while after is not None:
            page = (await client.get(f"/batches/batch/documents?limit=200&payloads=true&after={after}")).json
            pages.append("".join(each["document"][0] for each in page["documents"]))
            after = page["next"]
        # One that is larger by itself is shown alone.
        assert pages == ["ab", "c", "d", "efghijklmnopqrstuvw"]
        assert held <= 8
        without = (await client.get("/batches/batch/documents?limit=200")).json
        assert (len(without["documents"]), without["next"]) == (len(documents), None)


async def test_a_timeline_is_that_of_the_recorded_events_however_often_it_is_read(scene: Scene) -> None:
    await scene.submit("held", "bad", "good")
    await scene.until("batch", running=1, failed=1, succeeded=1)
    half = (await scene.client.get("/batches/batch/timeline")).json
    assert sum(point["finished"] for point in half["points"]) == 2
    assert max(point["running"] for point in half["points"]) == 3
    scene.gate.set()
    await within(scene.batches.result("batch"))
    other = Client(create_app(scene.batches, allow_anonymous=True))
    read = [(await client.get("/batches/batch/timeline")).json for client in (scene.client, scene.client, other)]
    events = await everything(scene.batches.progress("batch"))
    assert [(each["seq"], each["after"]) for each in read] == [(events[-1].seq, 0)] * 3
    fold = TimelineFold()
    for event in events:
        fold.add(event)
    exact = fold.timeline("batch", ["reading", "thinking", "writing"])
    for found in read:
        assert [stage["longest_seconds"] for stage in found["stages"]] == [
            stage.longest_seconds for stage in exact.stages
        ]
        # They begin with the second stage, which the failed one never leaves.
        assert [stage["documents"] for stage in found["stages"]] == [0, 2, 0]
        assert sum(point["finished"] for point in found["points"]) == 3
        assert [point["running"] for point in found["points"]] == [point.running for point in exact.points]


async def test_of_a_long_batch_the_latest_events_are_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelines, "_MOST_EVENTS", 3)
    await scene.submit("good", "good 2")
    await within(scene.batches.result("batch"))
    found = (await scene.client.get("/batches/batch/timeline")).json
    assert found["after"] == found["seq"] - 3
    # All of the last ones.
    assert found["seq"] == (await scene.batches.snapshot("batch")).seq


async def test_lists_are_filtered_and_go_on_page_by_page(scene: Scene) -> None:
    for number in range(5):
        await scene.submit("good", batch_id=f"batch-{number}")
        await scene.until(f"batch-{number}", succeeded=1)
    await scene.submit("held", batch_id="open")
    found: list[str] = []
    after = ""
    while True:
        page = (await scene.client.get(f"/batches?state=completed&limit=2{after}")).json
        assert len(page["batches"]) <= 2
        found += [batch["batch_id"] for batch in page["batches"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == [f"batch-{number}" for number in reversed(range(5))]


async def test_every_id_has_one_url(scene: Scene) -> None:
    for batch_id in HOSTILE:
        await scene.submit("good", batch_id=batch_id)
        await scene.until(batch_id, succeeded=1)
    listed = (await scene.client.get("/batches")).json["batches"]
    assert [batch["batch_id"] for batch in listed] == HOSTILE[::-1]
    for shown in listed:
        batch_id = shown["batch_id"]
        answer = await scene.client.get(f"/{shown['url']}")
        assert answer.json["batch_id"] == batch_id
        streamed = await scene.client.get(f"/{shown['url']}/progress")
        messages = messages_of(streamed.body.decode())[1:]
        assert [message.id for message in messages] == list(range(1, len(messages) + 1)), batch_id
        assert {message.json["batch_id"] for message in messages} == {batch_id}
        assert b"\x1b" not in streamed.body, batch_id
        assert b"\r" not in streamed.body, batch_id


async def test_the_stream_is_progress_exactly(scene: Scene) -> None:
    await scene.submit("held", "bad", "good")
    async with scene.client.stream("/batches/batch/progress") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["cache-control"] == "no-store"
        found: list[Message] = []
        async for message in stream.messages():
            found.append(message)
            if message.json["tag"] == "document_failed":
                scene.gate.set()
    events = await everything(scene.batches.progress("batch"))
    assert [event_of(message.data) for message in found] == events
    assert [(message.id, message.event) for message in found] == [(event.seq, event.tag) for event in events]
    staged = [message.json for message in found if message.event == "stage_progress"]
    assert {"stage", "percentage", "current", "total"} <= staged[0].keys()
    assert [event_json(event) for event in events] == [message.data for message in found]


@pytest.mark.parametrize(
    ("query", "header", "first"),
    [("", None, 1), ("?after=3", None, 4), ("", "5", 6), ("?after=3", "5", 6), ("?after=5", "3", 6)],
)
async def test_a_stream_resumes_after_the_greater_of_both(
    scene: Scene, query: str, header: str | None, first: int
) -> None:
    await scene.submit("good", "bad")
    await scene.until("batch", succeeded=1, failed=1)
    await everything(scene.batches.progress("batch"))
    headers = {} if header is None else {"last-event-id": header}
    answer = await scene.client.get(f"/batches/batch/progress{query}", headers)
    assert messages_of(answer.body.decode())[1].id == first


async def test_after_the_end_there_is_nothing_more(scene: Scene) -> None:
    await scene.submit("good")
    last = (await everything(scene.batches.progress("batch")))[-1].seq
    for path in ("progress", "snapshots"):
        answer = await scene.client.get(f"/batches/batch/{path}", {"last-event-id": str(last)})
        assert (answer.status, answer.body) == (204, b"")
        assert (await scene.client.get(f"/batches/batch/{path}", {"last-event-id": str(last - 1)})).status == 200


async def test_snapshots_are_streamed_until_the_end(scene: Scene) -> None:
    await scene.submit("held", "good")
    async with scene.client.stream("/batches/batch/snapshots") as stream:
        found: list[Any] = []
        async for message in stream.messages():
            found.append(message.json)
            assert message.event == "snapshot"
            if message.json["counts"]["succeeded"] == 1:
                scene.gate.set()
    assert found[-1]["state"]["tag"] == "completed"
    assert found[-1]["url"] == "batches/batch"


async def test_a_batch_is_cancelled_once(scene: Scene) -> None:
    await scene.submit("held")
    assert (await scene.client.post("/batches/batch/cancel?reason=enough")).json == {"cancelled": True}
    assert (await scene.client.post("/batches/batch/cancel")).json == {"cancelled": False}
    assert (await scene.client.get("/batches/batch")).json["state"]["reason"] == "enough"


async def test_a_batch_is_paused_and_resumed(scene: Scene) -> None:
    await scene.submit("held")
    assert (await scene.client.post("/batches/batch/pause?note=wrong&running=documents")).json == {"paused": True}
    assert (await scene.client.post("/batches/batch/pause?running=documents")).json == {"paused": False}
    (pause,) = (await scene.client.get("/batches/batch")).json["pauses"]
    assert (pause["reason"], pause["note"], pause["running"]) == ("operator", "wrong", "documents")
    wrong = await scene.client.post("/batches/batch/pause?running=all")
    assert (wrong.status, wrong.json["detail"]) == (400, "running is one of calls, documents")
    assert (await scene.client.post("/batches/batch/resume")).json == {"pauses": []}
    assert (await scene.client.get("/batches/batch")).json["pauses"] == []
    await scene.client.post("/batches/batch/cancel")
    for command in ("pause", "resume"):
        refused = await scene.client.post(f"/batches/batch/{command}")
        assert (refused.status, refused.json["code"]) == (409, "batch-ended")


async def test_options_of_a_batch_are_changed(scene: Scene) -> None:
    await scene.submit("held")
    before = (await scene.client.get("/batches/batch/config")).json
    assert (before["concurrency"], before["failure_policy"]["tag"]) == (8, "continue-on-failure")
    changes = {"concurrency": 2, "deadline": 90.5, "failure_policy": {"tag": "retry-failed", "max_attempts": 5}}
    after = (await scene.update(changes)).json
    assert (after["concurrency"], after["deadline"], after["failure_policy"]["max_attempts"]) == (2, 90.5, 5)
    # What is not given stays as it is.
    lifted = (await scene.update({"deadline": None})).json
    assert lifted == after | {"deadline": None} == (await scene.client.get("/batches/batch/config")).json
    assert (await scene.batches.config("batch")).deadline is None
    await scene.client.post("/batches/batch/cancel")
    refused = await scene.update({"concurrency": 3})
    assert (refused.status, refused.json["code"]) == (409, "batch-ended")


UNUSABLE = [
    (b"", "EOF while parsing"),
    (b"[1]", "Input should be an object"),
    (b"{}", "there is nothing to change"),
    (b'{"concurrency": 0}', "concurrency: "),
    (b'{"concurrency": 2.5}', "concurrency: "),
    (b'{"concurrency": true}', "concurrency: "),
    (b'{"concurrency": null}', "concurrency: "),
    (b'{"deadline": -1}', "deadline: "),
    (b'{"deadline": NaN}', "deadline: "),
    (b'{"deadline": 1e300}', "deadline: "),
    (b'{"document_timeout": "soon"}', "document_timeout: "),
    (b'{"failure_policy": "abort"}', "failure_policy: "),
    (b'{"failure_policy": {"tag": "sometimes"}}', "failure_policy: "),
    (b'{"failure_policy": {"tag": "retry-failed", "max_attempts": 0}}', "max_attempts"),
    (b'{"metadata": {"a": "b"}}', "'metadata' cannot be changed"),
    (b'{"concurency": 3}', "concurency: "),
    (b'{"concurrency": 3', "EOF while parsing"),
    (b"\xff", "Invalid JSON"),
]


async def test_options_that_cannot_be_used_are_named(scene: Scene) -> None:
    await scene.submit("held")
    for body, detail in UNUSABLE:
        refused = await scene.client.post("/batches/batch/update", {"content-type": "application/json"}, body)
        assert (refused.status, detail in refused.json["detail"]) == (400, True), (body, refused.json)
    assert (await scene.batches.config("batch")).concurrency == 8


async def test_an_update_has_a_body_of_json(scene: Scene) -> None:
    await scene.submit("held")
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        refused = await scene.client.post("/batches/batch/update", {"content-type": media_type}, b'{"concurrency": 2}')
        assert refused.status == 415
    assert (await scene.client.post("/batches/batch/update")).status == 415
    taken = await scene.client.post(
        "/batches/batch/update", {"content-type": "Application/JSON; charset=utf-8"}, b'{"concurrency": 2}'
    )
    assert taken.json["concurrency"] == 2


BAD = [
    ("/batches/none", 404),
    ("/batches/none/config", 404),
    ("/batches/~", 404),
    ("/batches/~YQ", 404),
    ("/batches/none/progress", 404),
    ("/batches/none/explain", 404),
    ("/batches/none/timeline", 404),
    ("/batches?limit=0", 400),
    ("/batches?limit=many", 400),
    ("/batches?label=x", 400),
    *((f"/batches?{name}=a%00b", 400) for name in ("workflow", "state", "after")),
    ("/batches/batch/documents?fingerprint=a%00b", 400),
    ("/batches/batch/documents?status=lost", 400),
    ("/batches/batch/documents?payloads=1", 400),
    ("/batches/batch/documents?after=-2", 400),
    ("/batches/batch/errors?examples=99", 400),
    ("/batches/batch/progress?after=x", 400),
    ("/batches/batch/progress?after=" + "9" * 40, 400),
    *((f"/batches/batch/{command}", 405) for command in ("cancel", "pause", "resume", "update")),
    ("/nothing", 404),
]


async def test_what_cannot_be_answered_is_a_problem(scene: Scene) -> None:
    await scene.submit("held")
    for path, status in BAD:
        answer = await scene.client.get(path)
        assert answer.status == status, path
        assert answer.headers["content-type"] == "application/problem+json", path
        assert (answer.json["status"], answer.json["type"] != "") == (status, True), path
        # No place of a stream is lost by it.
        assert len(scene.app._streams) + scene.app._streams._reserved == 0, path


async def test_a_text_that_no_database_could_be_asked_for_is_named(scene: Scene) -> None:
    answer = await scene.client.get("/batches?workflow=a%00b")
    assert answer.json["code"] == "configuration"
    assert answer.json["detail"] == "workflow must not contain NUL or lone surrogates"
    # Labels may have any text.
    assert (await scene.client.get("/batches?label=a%00%3Db%00")).json["batches"] == []


async def test_a_wrong_last_event_id_is_refused(scene: Scene) -> None:
    await scene.submit("held")
    for wrong in ("", "x", "-1", "1.5", "9" * 40):
        assert (await scene.client.get("/batches/batch/progress", {"last-event-id": wrong})).status == 400


# ---- who may do what -------------------------------------------------------------------------------------------------

RIGHTS: Mapping[str, Access] = {
    "reader": Access(actions={"read"}),
    "operator": Access(actions={"read", "control", "read-payloads"}),
    "acme": Access(actions={"read", "control"}, metadata={"tenant": "acme"}),
    "nobody": Access(actions=()),
}


async def by_token(request: Request) -> Access | None:
    return RIGHTS.get(request.headers.get("authorization", "").removeprefix("Bearer "))


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


ROUTES = [
    ("GET", "/batches"),
    ("GET", "/batches/batch"),
    ("GET", "/batches/none"),
    ("GET", "/batches/batch/documents"),
    ("GET", "/batches/batch/errors"),
    ("GET", "/batches/batch/explain"),
    ("GET", "/batches/batch/timeline"),
    ("GET", "/batches/batch/config"),
    ("GET", "/batches/batch/progress"),
    ("GET", "/batches/batch/snapshots"),
    *(("POST", f"/batches/batch/{command}") for command in ("cancel", "pause", "resume", "update")),
    ("GET", "/openapi.json"),
    ("GET", "/schemas/events/1"),
    ("GET", "/schemas/snapshot/1"),
    ("GET", "/nothing"),
    ("GET", "/static/../api.py"),
    ("POST", "/"),
    ("DELETE", "/batches/batch"),
]


async def test_nothing_is_answered_without_authorisation(scene: Scene) -> None:
    await scene.submit("held")
    client = Client(create_app(scene.batches, authorize=by_token))
    for (method, path), headers in product(ROUTES, ({}, bearer("stranger"))):
        answer = await client.ask(method, path, headers)
        assert answer.status == 401, path
        assert answer.headers["www-authenticate"] == "Bearer", path
        assert (await scene.batches.snapshot("batch")).state.tag != "cancelled", path


async def test_supervisors_need_no_token_and_are_told_nothing_else(scene: Scene) -> None:
    client = Client(create_app(scene.batches, authorize=by_token))
    alive, ready = await client.get("/health"), await client.get("/ready")
    assert [(each.status, each.json) for each in (alive, ready)] == [(200, {"alive": True}), (200, {"ready": True})]
    scene.batches.worker.begin_drain()
    ready = await client.get("/ready")
    assert (ready.status, ready.json) == (503, {"ready": False})
    assert (await client.get("/health")).status == 200


class Faulty(MemoryStore):
    """A store that counts what it is asked for a batch, and does not answer while it is away."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.asked = 0
        self.answer: Literal["none", "error", "never"] = "none"

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        self.asked += 1
        match self.answer:
            case "none":
                return await super().batch(batch_id)
            case "error":
                raise StoreUnavailableError("nobody answers")
            case "never":
                await asyncio.Event().wait()
                raise AssertionError


async def test_ready_means_that_the_store_answers() -> None:
    clock = ManualClock()
    store = Faulty(clock)
    batches = BatchClient(store, clock=clock)
    client = Client(create_app(batches, authorize=by_token))
    # Nobody has opened it.
    assert (await client.get("/ready")).status == 503
    async with batches:
        clock.advance(1)
        assert (await client.get("/ready")).json == {"ready": True}
        # Many that ask are answered by one reading.
        assert {(await client.get("/ready")).status for _ in range(100)} == {200}
        assert store.asked == 1
        store.answer = "error"
        clock.advance(1)
        assert (await client.get("/ready")).json == {"ready": False}
        # A restart would not bring the store back.
        assert (await client.get("/health")).status == 200
        store.answer = "never"
        clock.advance(1)
        several = [asyncio.create_task(client.get("/ready")) for _ in range(10)]
        # One asks, and the others wait for its answer.
        await eventually(lambda: store.asked == 3)
        clock.advance(2)
        assert {(await within(each)).status for each in several} == {503}
        assert store.asked == 3
        store.answer = "none"
        clock.advance(1)
        assert (await client.get("/ready")).status == 200


async def test_rights_are_looked_at_by_action(scene: Scene) -> None:
    await scene.submit("held")
    client = Client(create_app(scene.batches, authorize=by_token))
    assert (await client.get("/batches/batch", bearer("nobody"))).status == 403
    assert (await client.get("/batches/batch/progress", bearer("nobody"))).status == 403
    assert (await client.get("/batches/batch", bearer("reader"))).status == 200
    assert (await client.get("/batches/batch/documents", bearer("reader"))).status == 200
    assert (await client.get("/batches/batch/documents?payloads=true", bearer("reader"))).status == 403
    assert (await client.get("/batches/batch/documents?payloads=true", bearer("operator"))).status == 200
    for command in ("cancel", "pause", "resume", "update"):
        assert (await client.post(f"/batches/batch/{command}", bearer("reader"))).status == 403
    assert not (await scene.batches.snapshot("batch")).paused
    assert (await scene.batches.snapshot("batch")).state.tag != "cancelled"
    assert (await client.post("/batches/batch/cancel", bearer("operator"))).json == {"cancelled": True}


async def test_batches_of_others_are_not_there(scene: Scene) -> None:
    for tenant in ("acme", "other", "acme", "other"):
        await scene.batches.submit(
            ["good"],
            batch_id=f"{tenant}-{len([True async for _ in scene.batches.list_batches()])}",
            config=scene.batches._config.__class__(metadata={"tenant": tenant}),
        )
    client = Client(create_app(scene.batches, authorize=by_token), headers=bearer("acme"))
    shown = (await client.get("/batches?limit=1")).json
    assert [batch["batch_id"] for batch in shown["batches"]] == ["acme-2"]
    rest = (await client.get(f"/batches?after={shown['next']}")).json
    assert [batch["batch_id"] for batch in rest["batches"]] == ["acme-0"]
    assert rest["next"] is None
    assert (await client.get("/batches?label=tenant%3Dother")).json["batches"] == []
    # Nor is it told whether there is one, by what would follow it.
    for after in ("other-3", "nothing"):
        assert (await client.get(f"/batches?after={after}")).json["batches"] == []
    for path in ("", "/documents", "/errors", "/explain", "/timeline", "/progress", "/snapshots"):
        assert (await client.get(f"/batches/other-1{path}")).status == 404
    assert (await client.post("/batches/other-1/cancel")).status == 404
    assert (await client.get("/batches/acme-0")).status == 200


async def test_an_application_that_cannot_say_who_may_lets_nobody_in(scene: Scene) -> None:
    async def broken(request: Request) -> Access | None:
        raise RuntimeError("the directory is away")

    answer = await Client(create_app(scene.batches, authorize=broken), described=False).get("/batches")
    assert answer.status == 500
    assert b"directory" not in answer.body


ORIGINS: list[tuple[dict[str, str], int]] = [
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403),
    ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, 403),
    ({"origin": "http://testserver"}, 200),
    ({"origin": "https://console.example"}, 200),
    ({"sec-fetch-site": "same-origin"}, 200),
    ({}, 200),
]


async def test_pages_of_other_origins_command_nothing(scene: Scene) -> None:
    client = Client(create_app(scene.batches, allow_anonymous=True, allowed_origins=["https://console.example"]))
    for number, (headers, status) in enumerate(ORIGINS):
        batch_id = await scene.submit("held", batch_id=f"batch-{number}")
        assert (await client.post(f"/batches/{batch_id}/cancel", headers)).status == status, headers
        assert ((await scene.batches.snapshot(batch_id)).state.tag == "cancelled") == (status == 200), headers


async def test_no_web_site_reads_what_everybody_on_this_machine_may_read(scene: Scene) -> None:
    app = create_app(scene.batches, allow_anonymous=True, allowed_origins=["https://console.example"])

    async def readers(request: Request) -> Access:
        return Access(actions={"read"})

    asked = create_app(scene.batches, authorize=readers)
    for host, allowed in (
        ("localhost:80", True),
        ("batches.localhost", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("console.example", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("console.example:8000", False),
        ("[evil", False),
    ):
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            local = Client(app, server=(address, 8000))
            # Of the same origin, as its browser sees it.
            headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
            assert (await local.get("/batches", headers)).status == (200 if allowed else 403), host
            assert (await local.get("/health", {"host": host})).status == 200
        # Where it is not this machine's alone, and where its application says who may, by what no site has.
        assert (await Client(app, server=("10.0.0.7", 8000)).get("/batches", {"host": host})).status == 200
        assert (await Client(asked, server=("127.0.0.1", 8000)).get("/batches", {"host": host})).status == 200


async def test_other_origins_that_are_allowed_may_read(scene: Scene) -> None:
    app = create_app(scene.batches, allow_anonymous=True, allowed_origins=["https://console.example"])
    allowed = await Client(app).get("/batches", {"origin": "https://console.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://console.example"
    assert (
        "access-control-allow-origin"
        not in (await Client(app).get("/batches", {"origin": "https://evil.example"})).headers
    )


async def test_a_body_is_bounded(scene: Scene) -> None:
    await scene.submit("held")
    answer = await scene.client.post("/batches/batch/cancel", {"content-length": "9999999"}, b"x")
    assert answer.status == 413


async def test_every_answer_protects_the_browser(scene: Scene) -> None:
    for path in ("/batches", "/nothing", "/", "/static/page.js"):
        headers = (await scene.client.get(path)).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


# ---- what create_app refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"authorize": by_token, "allow_anonymous": True},
        {"allow_anonymous": "yes"},
        {"authorize": "everybody"},
        {"allow_anonymous": True, "max_clients": 0},
        {"allow_anonymous": True, "keep_alive": 15},
        {"allow_anonymous": True, "keep_alive": timedelta()},
        {"allow_anonymous": True, "allowed_origins": "https://example.org"},
        {"allow_anonymous": True, "allowed_origins": ["*"]},
        {"allow_anonymous": True, "allowed_origins": ["https://*.example.org"]},
        {"allow_anonymous": True, "allowed_origins": ["null"]},
        {"allow_anonymous": True, "allowed_origins": ["https://example.org/"]},
        {"allow_anonymous": True, "allowed_origins": ["https://Example.org"]},
    ],
)
def test_an_application_that_would_be_unsafe_is_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        create_app(BatchClient(MemoryStore()), **options)


def test_only_batches_are_shown() -> None:
    with pytest.raises(ConfigurationError):
        create_app(MemoryStore(), allow_anonymous=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def test_the_documents_of_the_routes_are_published(scene: Scene) -> None:
    document = (await scene.client.get("/openapi.json")).json
    assert document["openapi"] == "3.1.0"
    assert json.dumps((await scene.client.get("/schemas/events/1")).json)
    assert (await scene.client.get("/schemas/snapshot/1")).json["title"] == "Batch"
