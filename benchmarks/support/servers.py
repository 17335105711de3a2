"""A Postgres server for a benchmark, on this machine or a millisecond away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from tests.postgres.databases import without_schema
from tests.postgres.server import Server

ROOT = Path(__file__).parents[2]
ROUND_TRIP_SECONDS = 0.001


@contextmanager
def server() -> Generator[str]:
    """A server's DSN: of the one that `DURABLE_BATCHES_TEST_POSTGRES` names, else of one as the tests start it."""
    elsewhere = os.environ.get("DURABLE_BATCHES_TEST_POSTGRES")
    if elsewhere:
        yield elsewhere
        return
    with Server() as started:
        yield started.dsn()


@contextmanager
def schema_on(dsn: str) -> Generator[str]:
    """The name of a schema that is gone afterwards."""
    name = f"benchmark_{uuid4().hex[:12]}"
    try:
        yield name
    finally:
        without_schema(dsn, name)


@contextmanager
def slow_network(dsn: str) -> Generator[str]:
    """The same server, reached through a proxy in a process of its own that makes a round trip take a millisecond."""
    port = urlsplit(dsn).port or 5432
    delay = str(ROUND_TRIP_SECONDS / 2)
    command = [sys.executable, "-m", "tests.postgres.proxy", "--target", str(port), "--delay", delay]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        try:
            yield dsn.replace(f":{port}/", f":{proxy.stdout.readline().strip()}/")
        finally:
            proxy.terminate()
