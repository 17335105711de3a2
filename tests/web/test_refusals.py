"""What is refused, and how: methods, addresses, bodies and heads that no route takes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from tests.support import STAGES, Reading, Thinking, Writing, turns, within
from tests.web.asgi import Client
from tests.web.contract import check_answer

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.testing import ManualClock
from durable_batches.web import Access, WebApp, create_app, openapi

COMMANDS = [f"/batches/batch/{command}" for command in ("cancel", "pause", "resume")]
CONSOLE = "https://console.example"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def batches(
    clock: ManualClock,
) -> AsyncGenerator[BatchOrchestrator[str, str, Reading | Thinking | Writing, None]]:
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def run(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(run, worker=Worker(MemoryStore(clock=clock), clock=clock)) as batches:
        await batches.submit(["a"], batch_id="batch")
        yield batches
        gate.set()


@pytest.fixture
def app(batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None]) -> WebApp:
    return create_app(batches, allow_anonymous=True)


async def allowed(request: Request) -> Access | None:
    token = request.headers.get("authorization")
    return Access(actions={"read", "control"}) if token == "Bearer good" else None


# ---- methods and addresses -------------------------------------------------------------------------------------------


async def test_a_method_that_no_route_takes_is_a_problem_that_names_those_it_does(app: WebApp) -> None:
    client = Client(app)
    for path, operations in openapi()["paths"].items():
        address = path.replace("{batch}", "batch")
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            if method.lower() in operations:
                continue
            answer = await client.ask(method, address)
            assert (answer.status, answer.headers["content-type"]) == (405, "application/problem+json"), address
            assert {"status": 405, "title": "Method Not Allowed"}.items() <= answer.json.items()
            named = set(answer.headers["allow"].lower().split(", "))
            assert named - {"head"} == set(operations)


async def test_an_address_of_no_route_is_a_problem(app: WebApp) -> None:
    client = Client(app)
    for path in (
        "/nothing", "/batches/", "/batches//", "/batches/batch/", "/batches/batch/nothing", "/batches/batch/progress/",
        "/schemas/events/2", "/static/nothing.js", "/static/", "/openapi.yaml", "/" + "x" * 70_000,
    ):  # fmt: skip
        for method in ("GET", "POST", "OPTIONS"):
            answer = await client.ask(method, path)
            # None is sent elsewhere: where to would be made of headers that anybody writes.
            assert answer.status in (404, 405), path
            assert (answer.headers["content-type"], answer.json["status"]) == (
                "application/problem+json",
                answer.status,
            )
            assert (answer.status == 405) == ("allow" in answer.headers)


async def test_a_head_is_that_of_the_answer_and_begins_no_stream(app: WebApp) -> None:
    client = Client(app)
    for path, operations in openapi()["paths"].items():
        if "get" not in operations:
            continue
        address = path.replace("{batch}", "batch")
        head = await client.ask("HEAD", address)
        if "progress" in path or "snapshots" in path:
            assert head.body == b""
            async with client.stream(address) as stream:
                assert (head.status, head.headers) == (stream.status, stream.headers)
        else:
            found = await client.get(address)
            assert (head.status, head.headers) == (found.status, found.headers)
    assert len(app._streams) + app._streams._reserved == 0
    assert (await client.ask("HEAD", "/batches/none/progress")).status == 404


async def test_no_other_protocol_is_spoken(app: WebApp) -> None:
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    path = "/batches/batch/progress"
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": path,
        "root_path": "",
        "headers": [],
        "query_string": b"",
        "subprotocols": [],
    }
    await app(scope, receive, send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_an_origin_that_is_none_is_not_the_servers_own(app: WebApp) -> None:
    client = Client(app)
    for headers in ({"origin": "null", "host": ""}, {"origin": "http://", "host": ""}, {"origin": "http://["}):
        assert (await client.post("/batches/batch/cancel", headers)).status == 403, headers


# ---- bodies and heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMANDS)
async def test_a_command_does_not_ignore_a_body(app: WebApp, path: str) -> None:
    """A reason that is sent as JSON, say, would be lost."""
    client = Client(app)
    for body in (b'{"reason": "enough"}', b"x"):
        answer = await client.post(path, {"content-type": "application/json"}, body)
        assert (answer.status, answer.json["status"]) == (415, 415)
        assert "?reason=" in answer.json["detail"]
    assert (await client.get("/batches/batch")).json["state"]["tag"] != "cancelled"
    assert not (await client.get("/batches/batch")).json["pauses"]
    assert (await client.post(path, {"content-length": "0"})).status == 200


async def test_a_body_that_is_too_large_is_not_read(app: WebApp) -> None:
    client = Client(app)
    for method, path in (("POST", "/batches/batch/cancel"), ("GET", "/batches"), ("GET", "/nothing")):
        for length in ("65537", "9" * 30, "9" * 5_000):
            answer = await client.ask(method, path, {"content-length": length}, b"x")
            assert (answer.status, answer.json["detail"]) == (413, "a body has at most 65536 bytes")
    # One that does not say how long it is.
    assert (await client.post("/batches/batch/cancel", {}, b"x" * 65_537)).status == 413
    for odd in ("-1", "x", "\u00b2"):
        assert (await client.get("/batches", {"content-length": odd})).status == 200
    assert (await client.get("/batches/batch")).json["state"]["tag"] != "cancelled"


async def test_a_stream_with_a_body_that_is_too_large_ends(app: WebApp, caplog: pytest.LogCaptureFixture) -> None:
    stream = Client(app).begin("GET", "/batches/batch/progress", body=b"x" * 65_537)
    await within(stream.task)
    await turns(5)
    assert len(app._streams) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_command_whose_client_leaves_before_it_is_whole_is_not_given(app: WebApp) -> None:
    stream = Client(app).begin("POST", "/batches/batch/cancel")
    stream._body = None  # nothing has come yet
    stream.leave()
    await stream.begin()
    await within(stream.task)
    assert stream.status == 400
    assert (await Client(app).get("/batches/batch")).json["state"]["tag"] != "cancelled"


async def test_long_heads_are_answered(app: WebApp) -> None:
    client = Client(app)
    for headers in ({"cookie": "x" * 200_000}, {"authorization": "x" * 200_000}, {"last-event-id": "7"}):
        assert (await client.get("/batches", headers)).status == 200
    assert (await client.get(f"/batches/{'x' * 200_000}")).status == 404
    assert (await client.get(f"/batches?workflow={'x' * 200_000}")).json["batches"] == []
    assert (await client.get("/batches/batch/progress", {"last-event-id": "1" * 200_000})).status == 400


# ---- pages of other origins ------------------------------------------------------------------------------------------


async def test_a_page_of_an_allowed_origin_may_ask_before_it_sends_its_token(
    batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None],
) -> None:
    """The browser asks without the token, which it would only send afterwards."""
    client = Client(create_app(batches, authorize=allowed, allowed_origins=[CONSOLE]))
    asks = {
        "origin": CONSOLE,
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    before = await client.ask("OPTIONS", "/batches/batch/progress", asks)
    assert (before.status, before.headers["access-control-allow-origin"]) == (200, CONSOLE)
    assert "authorization" in before.headers["access-control-allow-headers"].lower()
    assert "script-src 'self'" in before.headers["content-security-policy"]
    shown = await client.get("/batches/batch", {"origin": CONSOLE, "authorization": "Bearer good"})
    assert (shown.status, shown.headers["access-control-allow-origin"]) == (200, CONSOLE)
    # Its page can read that it is refused, rather than see a failure of the network.
    refused = await client.get("/batches/batch", {"origin": CONSOLE})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, CONSOLE)
    other = await client.ask("OPTIONS", "/batches", {**asks, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    # Nothing is told to whom only the method pretends.
    assert (await client.ask("OPTIONS", "/batches", {"origin": CONSOLE})).status == 401


# ---- what the application says ---------------------------------------------------------------------------------------


async def test_an_answer_about_rights_that_does_not_come_is_a_refusal(
    batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None], clock: ManualClock
) -> None:
    ended: list[str] = []

    async def hangs(request: Request) -> Access | None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(request.url.path)
                if request.url.path == "/batches":
                    raise
                if request.url.path == "/ends":
                    raise RuntimeError("too late") from None
                if len(ended) > 5:
                    raise

    client = Client(create_app(batches, authorize=hangs))
    # The second one does not let itself be cancelled: the answer does not wait for it.
    for path in ("/batches", "/batches/batch", "/ends"):
        asking = asyncio.create_task(client.get(path))
        await turns(20)
        clock.advance(9)
        await turns(20)
        assert not asking.done()
        clock.advance(1)
        answer = await within(asking)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.json["detail"] == "what the sender may do cannot be looked up now"
        await turns(5)
        assert ended[-1] == path
    for task in asyncio.all_tasks():
        while task.get_name() == "durable-batches authorize" and not task.done():
            task.cancel()
            await turns(2)


async def test_a_look_that_was_cancelled_by_its_own_code_is_a_refusal(
    batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None],
) -> None:
    async def cancelled(request: Request) -> Access | None:
        raise asyncio.CancelledError

    assert (await within(Client(create_app(batches, authorize=cancelled)).get("/batches"))).status == 503


async def test_the_application_may_refuse_as_it_likes(
    batches: BatchOrchestrator[str, str, Reading | Thinking | Writing, None],
) -> None:
    class Detailed(HTTPException):
        def __init__(self) -> None:
            super().__init__(429, headers={"Retry-After": "60"})
            self.detail = {"wait": "a minute"}  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]

    errors = iter([HTTPException(499, "gone"), Detailed(), HTTPException(302, headers={"Location": "/login"})])

    async def refuses(request: Request) -> Access | None:
        raise next(errors)

    client = Client(create_app(batches, authorize=refuses), described=False)
    assert [(await client.get("/batches")).json["status"] for _ in range(3)] == [499, 429, 302]


# ---- the check of the answers itself ---------------------------------------------------------------------------------

PROBLEM = {"type": "about:blank", "title": "x", "status": 404, "detail": "", "code": ""}


@pytest.mark.parametrize(
    ("method", "path", "status", "media_type", "body"),
    [
        ("GET", "/batches", 404, "application/problem+json", PROBLEM),
        ("GET", "/batches/x", 200, "text/html", {}),
        ("GET", "/batches", 200, "application/json", {"batches": []}),
        ("GET", "/batches", 200, "application/json", {"batches": [], "next": None, "more": 1}),
        ("GET", "/batches/x", 404, "application/problem+json", {**PROBLEM, "status": 500}),
        ("GET", "/batches/x", 404, "application/problem+json", {**PROBLEM, "more": 1}),
        ("GET", "/nothing", 200, "application/json", {}),
        ("POST", "/batches", 200, "application/json", {}),
        ("POST", "/batches/x/cancel", 500, "application/problem+json", {**PROBLEM, "status": 500}),
    ],
)
def test_an_answer_that_is_not_described_fails(
    method: str, path: str, status: int, media_type: str, body: object
) -> None:
    with pytest.raises(AssertionError):
        check_answer(method, path, status, {"content-type": media_type}, json.dumps(body).encode())
