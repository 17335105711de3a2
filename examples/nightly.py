"""A nightly cron job without asyncio: sort the day's support tickets with a paid classifier.

    python examples/nightly.py               (needs: pip install durable-batches)

In the crontab:

    15 2 * * *  cd /srv/tickets && python nightly.py || python nightly.py

The date is the batch id. So a job that was killed is started again and continues where it stopped, and a job that has
already finished does nothing and returns the same exit code: 0 if every ticket was sorted, 3 if some were not, another
one if the job as a whole failed. The second command above is all that a retry needs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from durable_batches import (
    BatchConfig,
    BatchStateMachine,
    ContinueOnFailure,
    NonRetryableError,
    Results,
    RetryPolicy,
    Stage,
    current_execution,
    dependency,
    durable_activity,
    run_batch,
    workflow,
)

log = logging.getLogger("nightly")

# ---- the classifier: your own client goes here ----------------------------------------------------------------------


class UnavailableError(Exception):
    """503."""


class Classifier:
    """Sorts texts by their words, in its own time; a call in ten meets a service that is not available."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._refused: set[str] = set()

    def classify(self, text: str) -> str:
        """An ordinary blocking call, as with `requests`."""
        time.sleep(self._latency)
        if text not in self._refused and hashlib.sha256(text.encode()).digest()[0] < 26:
            self._refused.add(text)
            raise UnavailableError("503")
        words = set(text.lower().replace(".", " ").replace("?", " ").split())
        queues = {"billing": {"invoice", "refund", "charged"}, "outage": {"down", "error", "slow"}}
        return next((queue for queue, telling in queues.items() if words & telling), "other")

    def close(self) -> None:
        pass


LATENCY = 0.05


def classifier() -> Generator[Classifier]:
    """Open the client when the job starts and close it when the job ends."""
    client = Classifier(LATENCY)
    yield client
    client.close()


# ---- the workflow ---------------------------------------------------------------------------------------------------


class Ticket(BaseModel):
    id: str
    text: str


class Classifying(Stage):
    tag: Literal["classifying"] = "classifying"


class EmptyTicketError(NonRetryableError):
    """The ticket has no text to sort it by."""


# A sync activity runs in a thread and may block.
@durable_activity(
    stage=Classifying,
    timeout=timedelta(seconds=20),
    retry=RetryPolicy(max_attempts=5, initial=timedelta(milliseconds=100)),
)
def classify(text: str, client: Classifier = dependency(classifier)) -> str:
    if not text.strip():
        raise EmptyTicketError("the ticket has no text")
    queue = client.classify(text)
    log.info("paid for: %s", text)
    return queue


# A workflow and a resolver are always `async def`; they only call activities, with `await`.


async def report(results: Results[str]) -> dict[str, int]:
    """Write the report when all tickets have finished, and count its entries.

    If the job is killed here, it runs again from the beginning, so the file is renamed only when it is complete.
    """
    path = Path(f"report-{current_execution().metadata['date']}.csv")
    unfinished = path.with_suffix(".part")
    queues: Counter[str] = Counter()
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["ticket", "queue"])
        async for result in results:
            rows.writerow([result.document_id, result.value])
            queues[result.value] += 1
        async for failure in results.failures():
            rows.writerow([failure.document_id, f"not sorted: {failure.error}"])
    unfinished.replace(path)
    return dict(queues)


@workflow(BatchStateMachine(Classifying), name="nightly-tickets", resolver=report)
async def sort_ticket(ticket: Ticket) -> str:
    return await classify(ticket.text)


# ---- the job --------------------------------------------------------------------------------------------------------


def tickets(path: Path) -> Iterator[Ticket]:
    """Read the day's export, one JSON object per line, while it is submitted: it may have any size."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Ticket.model_validate(json.loads(line))


def sample(path: Path) -> None:
    """Write a day's export, so that the example has documents."""
    texts = [
        "I was charged twice on invoice {}.",
        "Is the site down? Error {} since noon.",
        "Refund for order {}, please.",
        "How do I change the name of project {}?",
        "Everything is slow today, page {} most of all.",
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(60):
            text = "" if number == 41 else texts[number % len(texts)].format(1000 + number)
            file.write(json.dumps({"id": f"T{number:03}", "text": text}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Sort the day's tickets.")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="the day; today by default")
    parser.add_argument("--store", type=Path, default=Path("nightly.db"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")

    day: date = arguments.date
    export = Path(f"tickets-{day}.jsonl")
    if not export.exists():
        sample(export)

    result = run_batch(
        sort_ticket,
        tickets(export),
        store=arguments.store,
        batch_id=f"tickets-{day}",
        config=BatchConfig(
            concurrency=4,
            failure_policy=ContinueOnFailure(max_failure_ratio=0.1),
            deadline=timedelta(hours=5),
            metadata={"date": str(day)},
        ),
    )
    print(result)
    if result.resolution is not None:
        for queue, count in sorted(result.resolution.items()):
            print(f"{queue:10} {count:5}")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
