"""Documents through a hostile provider, over HTTP, at the limit of its tokens, for some minutes.

Of one that also refuses at random, whatever the rate, a little less is used: all calls wait after each refusal.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support import STAGES

from durable_batches import (
    Amount,
    BatchConfig,
    BatchOrchestrator,
    RetryPolicy,
    SQLiteStore,
    current_activity,
    durable_activity,
    workflow,
)
from durable_batches.flow import CentralRateLimiter, CircuitBreaker
from durable_batches.testing.provider import Fault, HostileProvider, ProviderError

LIMIT: Final = 90_000
"""Tokens a minute; a document takes 100 to 199 of them."""

FAILURES: Final[dict[Fault, float]] = {"500": 0.02, "502": 0.01, "cut": 0.02, "malformed": 0.02, "hang-up": 0.01}
REFUSALS: Final[dict[Fault, float]] = {
    "429": 0.002,
    "429-seconds": 0.002,
    "429-fraction": 0.002,
    "429-milliseconds": 0.002,
    "429-date": 0.002,
    "429-reset": 0.002,
    "429-reset-at": 0.002,
    "429-retry-info": 0.002,
    "429-text": 0.002,
    "503": 0.002,
}


async def post(url: str, request: dict[str, Any], key: str) -> Any:
    """Make one request, on a connection of its own."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        body = json.dumps(request).encode()
        head = f"POST / HTTP/1.1\r\nidempotency-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
        answer = await reader.readexactly(int(headers["content-length"]))
        status = int(lines[0].split(" ")[1])
        if status != 200:
            raise ProviderError(status, headers, json.loads(answer))
        current_activity().observe(headers)
        return json.loads(answer)
    finally:
        writer.close()


@pytest.mark.parametrize(("documents", "refuses"), [(2_000, False), (1_000, True)], ids=["fails", "refuses, too"])
async def test_documents_at_the_limit(tmp_path: Path, *, documents: int, refuses: bool) -> None:
    faults: dict[Fault, float] = {**FAILURES, **(REFUSALS if refuses else {})}
    limiter = CentralRateLimiter(
        name="hostile", tokens_per_minute=LIMIT, max_concurrent=128, breaker=CircuitBreaker(failure_threshold=10)
    )

    def estimate(number: int) -> Amount:
        return Amount(tokens=100 + number * 37 % 100)

    @durable_activity(
        limiter=limiter,
        estimate=estimate,
        retry=RetryPolicy(max_attempts=10, initial=timedelta(seconds=0.2)),
        timeout=timedelta(seconds=30),
    )
    async def ask(number: int) -> int:
        await post(provider.url, {"number": number, "tokens": estimate(number).tokens}, str(number))
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with (
        HostileProvider(
            faults=faults, tokens_per_minute=LIMIT, delay=timedelta(seconds=1), retry_after=timedelta(seconds=2)
        ) as provider,
        BatchOrchestrator(run, store=SQLiteStore(tmp_path / "batches.db")) as batches,
    ):
        result = await batches.run(range(documents), config=BatchConfig(concurrency=256))
    ledger = provider.ledger
    first, last = ledger.entries[0].at, ledger.entries[-1].at
    share = ledger.tokens_between(first + 60, last - 10) / (LIMIT / 60 * (last - first - 70))
    print(
        f"{len(ledger)} requests in {last - first:.0f} s, faults {dict(ledger.faults)}; {share:.1%} of the limit used"
    )
    assert result.counts.succeeded == documents
    assert ledger.most_tokens() <= LIMIT
    assert ledger.paid_again == {}
    assert "limit" not in ledger.faults
    assert share >= (0.75 if refuses else 0.97)
