"""A command that is to be applied has its answer awaited, but for who asks a second time."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support import opened

from durable_batches import SQLiteStore
from durable_batches.cli import session
from durable_batches.reading.client import BatchClient
from durable_batches.testing import ManualClock


async def make(path: Path) -> None:
    """Make a file with nothing in it."""
    async with opened(SQLiteStore(path)):
        pass


def leave(code: int) -> NoReturn:
    """In place of the end of the process."""
    raise SystemExit(code)


def test_a_second_ctrl_c_waits_for_no_answer(
    tmp_path: Path, signal_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_leave", leave)
    interrupted = 0

    async def work(_: BatchClient) -> int:
        nonlocal interrupted
        signal.raise_signal(signal.SIGINT)
        for _wait in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                interrupted += 1
                signal_clock.advance(1)
                if interrupted == 1:
                    signal.raise_signal(signal.SIGINT)
        return 0

    asyncio.run(make(tmp_path / "batches.db"))
    with pytest.raises(SystemExit) as ended:
        session.perform(str(tmp_path / "batches.db"), "", work, reads=False)
    assert (ended.value.code, interrupted) == (130, 2)
