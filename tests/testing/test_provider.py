"""`HostileProvider`: each of its faults as clients see it, its limits, its account and its ledger."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import pytest
from tests.flow.virtual import passing
from tests.support import STAGES

from durable_batches import Amount, BatchConfig, ConfigurationError, RetryPolicy, durable_activity, workflow
from durable_batches.flow import CentralRateLimiter, CircuitBreaker
from durable_batches.runtime.classify import default_classifier
from durable_batches.testing import ManualClock, activity_context, environment
from durable_batches.testing.provider import FAULTS, Fault, HostileProvider, ProviderError

SECOND: Final = timedelta(seconds=1)

OF_FAULTS: Final[Mapping[Fault, tuple[str, float | None]]] = {
    "429": ("overloaded", None),
    "429-seconds": ("overloaded", 2.0),
    "429-fraction": ("overloaded", 1.5),
    "429-milliseconds": ("overloaded", 1.5),
    "429-date": ("overloaded", 1.5),
    "429-reset": ("overloaded", 1.5),
    "429-reset-at": ("overloaded", 1.5),
    "429-retry-info": ("overloaded", 1.5),
    "429-text": ("overloaded", 1.5),
    "402": ("quota", None),
    "500": ("retry", None),
    "502": ("retry", None),
    "503": ("overloaded", None),
    "503-seconds": ("overloaded", 2.0),
    "529": ("overloaded", None),
    "cut": ("retry", None),
    "malformed": ("retry", None),
    "empty": ("retry", None),
    "hang-up": ("retry", None),
    "reset": ("retry", None),
}


def post(url: str, body: object, **headers: str) -> Any:
    """Post JSON with the client of the standard library, which never retries."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {name.replace("_", "-"): text for name, text in headers.items()})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def check(error: BaseException, fault: Fault) -> None:
    """The classifier reads it rightly."""
    kind, seconds = OF_FAULTS[fault]
    verdict = default_classifier(error)
    assert verdict.kind == kind, fault
    if seconds is None:
        assert verdict.retry_after is None, fault
    else:
        assert verdict.retry_after is not None
        # A date has whole seconds, and a moment has passed a little.
        assert verdict.retry_after.total_seconds() == pytest.approx(seconds, abs=0.8), fault


async def test_each_fault_over_http_is_what_its_name_says() -> None:
    assert set(OF_FAULTS) == {*FAULTS} - {"slow"}
    async with HostileProvider(retry_after=1.5 * SECOND) as provider:
        for fault in OF_FAULTS:
            provider.inject(fault)
            with pytest.raises((OSError, ValueError, http.client.HTTPException)) as caught:
                await asyncio.to_thread(post, provider.url, {"tokens": 5})
            if isinstance(caught.value, urllib.error.HTTPError):
                with caught.value as error:
                    if fault not in ("402", "429-retry-info", "429-text"):
                        # The client of the standard library does not read the bodies of errors.
                        check(error, fault)
                    assert error.code == int(fault[:3])
        good = await asyncio.to_thread(post, f"{provider.url}/v1/anything", {"tokens": 5}, idempotency_key="a")
        assert good == {"answer": {"tokens": 5}, "usage": {"total_tokens": 5}}
    ledger = provider.ledger
    assert [entry.fault for entry in ledger] == [*OF_FAULTS, None]
    assert ledger.paid["a"] == 1
    assert sum(ledger.paid.values()) == 4


async def test_each_fault_without_a_network_is_the_same() -> None:
    provider = HostileProvider(retry_after=1.5 * SECOND)
    with activity_context(clock=ManualClock()):
        for fault in OF_FAULTS:
            provider.inject(fault)
            with pytest.raises((ProviderError, ConnectionError, ValueError)) as caught:
                await provider.call({"tokens": 5})
            if fault not in ("429-date", "429-reset-at"):
                # The classifier goes by the machine's clock where there is no worker.
                check(caught.value, fault)
        clock = ManualClock()
        with activity_context(clock=clock):
            provider.inject("slow")
            assert await passing(clock, provider.call({"tokens": 5})) == {
                "answer": {"tokens": 5},
                "usage": {"total_tokens": 5},
            }
        assert clock.boot() == 1_030


async def test_a_connection_serves_requests_of_any_form_and_refuses_what_is_none() -> None:
    async with HostileProvider() as provider:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(provider.url.rpartition(":")[2]))
        chunked = b'POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nb\r\n{"tokens":7\r\n1\r\n}\r\n0\r\n\r\n'
        for request, status in ((chunked, b"200"), (b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n[]", b"400")):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        # It is closed while a connection is open.
        _, other = await asyncio.open_connection("127.0.0.1", int(provider.url.rpartition(":")[2]))
    other.close()
    with pytest.raises(ConfigurationError, match="within its block"):
        _ = provider.url
    assert [entry.tokens for entry in provider.ledger] == [7]


async def test_its_limits_are_exact_and_say_when_there_is_room() -> None:
    clock = ManualClock()
    provider = HostileProvider(requests_per_minute=2, tokens_per_minute=100, balance=120)
    with activity_context(clock=clock):
        await provider.call({"tokens": 60})
        clock.advance(20)
        with pytest.raises(ProviderError) as caught:
            await provider.call({"tokens": 50})
        assert (caught.value.status_code, caught.value.headers["retry-after"]) == (429, "40.000")
        assert caught.value.headers["x-ratelimit-remaining-tokens"] == "40"
        clock.advance(40)
        await provider.call({"tokens": 50})
        with pytest.raises(ProviderError) as caught:
            await provider.call({"tokens": 11})
        assert caught.value.status_code == 402
        provider.balance = None
        await provider.call({"tokens": 11})
        with pytest.raises(ProviderError):
            await provider.call({"tokens": 1})
    assert provider.ledger.most_tokens() == 61
    assert provider.ledger.most_requests() == 2
    assert provider.ledger.faults == {"limit": 2, "402": 1}


async def test_what_is_paid_for_again_is_in_the_ledger() -> None:
    provider = HostileProvider()
    provider.inject("cut", None, None)
    with activity_context(clock=ManualClock()):
        with pytest.raises(ConnectionError):
            await provider.call({"tokens": 1}, key="a")
        await provider.call({"tokens": 1}, key="a")
        assert provider.ledger.paid_again == {}
        await provider.call({"tokens": 1}, key="a")
    assert provider.ledger.paid_again == {"a": 1}
    assert provider.ledger.paid == {"a": 3}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"faults": {"bad": 0.1}}, "faults"),
        ({"faults": {"500": 0.6, "502": 0.6}}, "at most 1"),
        ({"faults": {"500": float("nan")}}, "at most 1"),
        ({"faults": ["500"]}, "faults"),
        ({"tokens_per_minute": 0}, "tokens_per_minute"),
        ({"balance": -1}, "balance"),
        ({"delay": 3}, "delay"),
        ({"slow": -SECOND}, "slow"),
        ({"seed": "x"}, "seed"),
        ({"answer": "x"}, "answer"),
    ],
)
def test_what_makes_no_sense_is_refused(options: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        HostileProvider(**options)


async def test_a_batch_through_it_uses_the_limit_pays_what_is_needed_and_fails_nothing() -> None:
    """Two minutes at the limit, of which no call takes more than 2 %."""
    limit = 10_000
    provider = HostileProvider(
        faults={"500": 0.04, "cut": 0.03, "malformed": 0.02, "hang-up": 0.02},
        tokens_per_minute=limit,
        delay=2 * SECOND,
        seed=5,
    )
    limiter = CentralRateLimiter(tokens_per_minute=limit, max_concurrent=64, breaker=CircuitBreaker())

    def estimate(number: int) -> Amount:
        return Amount(tokens=100 + number * 37 % 100)

    @durable_activity(
        limiter=limiter, estimate=estimate, retry=RetryPolicy(max_attempts=10, initial=SECOND), timeout=20 * SECOND
    )
    async def ask(number: int) -> int:
        await provider.call({"number": number, "tokens": estimate(number).tokens}, key=str(number))
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        started = env.clock.boot()
        result = await env.finished(await env.batches.submit(range(120), config=BatchConfig(concurrency=100)))
    assert result.counts.succeeded == 120
    ledger = provider.ledger
    assert ledger.most_tokens() <= limit
    assert "limit" not in ledger.faults
    assert sum(ledger.faults.values()) > 8
    used = ledger.tokens_between(started + 10, started + 100)
    assert used >= 0.97 * 1.5 * limit
    # Paid is what was answered, and what was answered in part: nothing that had come was paid for again.
    assert ledger.paid_again == {}
    assert len(ledger.paid) == 120
