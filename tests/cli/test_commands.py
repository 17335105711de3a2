"""The commands on every store: what they print, for people and for programs, and their exit codes."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest
from tests.cli.commands import Commands
from tests.support import opened

from durable_batches import BatchConfig, Store
from durable_batches.cli.exits import Exit
from durable_batches.clock import SystemClock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.notes import BlockedAt, LongCallsOf, RunningActivity, WorkerNote, encode_note
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.spending import Spend, encode_spends
from durable_batches.stores import NotedHeart
from durable_batches.testing.conformance.scene import LETTERS, Scene


def test_batches_are_listed_and_shown(commands: Commands) -> None:
    commands.submit("monday", "one", "bad", "three", tenant="north")
    commands.submit("tuesday", "four", runs=False)

    listed = commands("list")
    assert (listed.code, listed.err) == (Exit.DONE, "")
    header, newest, oldest = (line.split() for line in listed.out.splitlines())
    assert header == ["BATCH", "WORKFLOW", "STATE", "DONE", "FAILED", "CREATED"]
    assert newest[:5] == ["tuesday", "translate", "pending", "0/1", "0"]
    assert oldest[:5] == ["monday", "translate", "completed", "3/3", "1"]
    tuesday, monday = commands("list", "--json").json
    assert (tuesday["batch_id"], tuesday["state"], tuesday["ended_at"]) == ("tuesday", "pending", None)
    assert monday["counts"] == {
        **dict.fromkeys(("pending", "running", "waiting", "cancelled"), 0),
        "total": 3,
        "succeeded": 2,
        "failed": 1,
    }
    assert monday["stages"] == [{"stage": "translating", "current": 3, "done": 3, "total": 3}]

    shown = commands("show", "monday", "tuesday")
    assert shown.code == Exit.DONE
    for line in ("documents      3: 2 succeeded, 1 failed", "labels         tenant=north", "batch          tuesday"):
        assert f"{line}\n" in shown.out
    config = BatchConfig(metadata={"tenant": "north"}).model_dump(mode="json")
    assert commands("show", "monday", "--json").json == [{**monday, "config": config, "checkpoints": 2}]


async def _refuse(store: Store) -> None:
    """Do what a worker does whose provider refuses a call."""

    async def pass_time(seconds: float) -> None:
        raise NotImplementedError

    async with opened(store):
        hand = await Scene(store, pass_time).worker(lease=1_000)
        (claim,) = await hand.claim(1, workflows=[("translate", "1")])
        await store.commit(hand.worker_id, hand.number + 1, [hand.refused(claim, note="no credit \x1b left")])
        await store.leave(hand.worker_id)


def test_a_pause_is_shown(commands: Commands) -> None:
    commands.submit("monday", "one", "two", runs=False)
    asyncio.run(_refuse(commands.make()))
    assert "translating (paused)" in commands("list").out
    shown = commands("show", "monday").out
    assert "state          translating (paused)\n" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("pause ")]
    assert line.startswith("pause          quota since ")
    assert line.endswith(r": no credit \x1b left")
    (paused,) = commands("show", "monday", "--json").json
    (pause,) = paused["pauses"]
    assert (paused["paused"], pause["reason"], pause["note"]) == (True, "quota", "no credit \x1b left")
    assert pause["since"] < pause["until"]
    (reason,) = [
        reason for reason in commands("why", "monday", "--json").json[0]["reasons"] if reason["tag"] == "paused"
    ]
    assert reason["note"] == "no credit \x1b left"


async def _spend(store: Store) -> None:
    """Do what a worker does whose call has spent something."""

    async def pass_time(seconds: float) -> None:
        raise NotImplementedError

    spent = encode_spends([Spend("translate", 0, "gpt", 1_200, 1_000, 200, Decimal("0.10"), 1)])
    async with opened(store):
        hand = await Scene(store, pass_time).worker(lease=1_000)
        (claim,) = await hand.claim(1, workflows=[("translate", "1")])
        facts: list[Fact] = [hand.recorded(claim, "key", spent=spent), hand.released(claim)]
        await store.commit(hand.worker_id, hand.number + 1, facts)
        await store.leave(hand.worker_id)


def test_what_a_batch_spends_is_shown(commands: Commands) -> None:
    commands.submit("monday", "one", runs=False)
    assert commands("spent", "monday").err.endswith("no call has said that it spent anything\n")
    asyncio.run(_spend(commands.make()))
    assert "spent          0.1 and 1,200 tokens\n" in commands("show", "monday").out
    lines = [line.split() for line in commands("spent", "monday").out.splitlines()]
    assert lines[:2] == [["spent", "0.1", "and", "1,200", "tokens"], ["unknown", "price", "1", "calls"]]
    assert lines[3:] == [
        ["stage", "translating", "0.1", "1200"],
        ["activity", "translate", "0.1", "1200"],
        ["model", "gpt", "0.1", "1200"],
    ]
    (spending,) = commands("spent", "monday", "--json").json
    assert spending["total"] == {"tokens": 1200, "cost": "0.1"}
    assert spending["by_model"]["gpt"]["input_tokens"] == 1000
    assert commands("show", "monday", "--json").json[0]["spent"] == {"tokens": 1200, "cost": "0.1"}

    updated = commands("update", "monday", "--budget-cost", "80", "--budget-tokens", "50000")
    assert updated.out.endswith("budget 80 or 50,000 tokens, then pause\n")
    assert "budget         80 or 50,000 tokens, then pause\n" in commands("show", "monday").out
    refused = commands("update", "monday", "--budget-tokens", "1200")
    assert "the budget of batch 'monday' must exceed what is spent: 0.1 and 1,200 tokens" in refused.err
    for wrong in ("--budget-cost=1e3", "--budget-cost=-1", "--budget-cost=NaN", "--budget-tokens=0"):
        assert commands("update", "monday", wrong).code == Exit.USAGE
    assert "budget" not in commands("update", "monday", "--budget-cost", "none").out


def test_documents_events_and_results_are_shown(commands: Commands, tmp_path: Path) -> None:
    commands.submit("monday", "one", "bad", "three")

    documents = commands("documents", "monday")
    assert [line.split()[:2] for line in documents.out.splitlines()] == [
        ["DOCUMENT", "STATUS"],
        ["one", "succeeded"],
        ["bad", "failed"],
        ["three", "succeeded"],
    ]
    assert "ValueError: cannot translate bad" in documents.out
    assert "ONE" not in documents.out
    (failed,) = commands("documents", "monday", "--status", "failed", "--json").json
    assert failed["failure"]["error_type"] == "ValueError"
    assert "document" not in failed
    (first,) = commands("documents", "monday", "--payloads", "--limit", "1", "--json").json
    assert (first["document"], first["result"]) == ("one", "ONE")
    assert "ONE" in commands("documents", "monday", "--payloads").out

    events = commands("events", "monday", "--json").json
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["tag"], events[0]["total"], events[-1]["tag"]) == ("batch_created", 3, "batch_completed")
    assert commands("events", "monday", "--follow", "--json").json == events
    assert commands("events", "monday", "--after", "2", "--limit", "3", "--json").json == events[2:5]
    last = commands("events", "monday", "--after", str(len(events) - 1))
    assert last.out.split()[0] == str(len(events))
    assert last.out.endswith('batch_completed       counts="2 succeeded, 1 failed"\n')

    exported = commands("export", "monday")
    assert exported.out == '{"document_id":"one","result":"ONE"}\n{"document_id":"three","result":"THREE"}\n'
    assert exported.err == "durable-batches: 2 of 3 documents have a result\n"
    file = tmp_path / "results.jsonl"
    assert commands("export", "monday", "--out", str(file)).out == ""
    assert file.read_text() == exported.out


def test_failures_are_grouped(commands: Commands) -> None:
    commands.submit("monday", "one", "bad 1", "bad 2", "bad 33", "bad luck")
    (digest,) = commands("errors", "monday", "--examples", "2", "--json").json
    assert (digest["batch_id"], digest["failed"], digest["others"]) == ("monday", 4, 0)
    numbers, luck = digest["groups"]
    assert (numbers["count"], numbers["error_type"], numbers["activity"]) == (3, "ValueError", "to_upper")
    assert [example["document_id"] for example in numbers["examples"]] == ["bad 1", "bad 2"]
    assert luck["count"] == 1
    lines = commands("errors", "monday", "--examples", "2").out.splitlines()
    assert lines[0].startswith("     3  activity 'to_upper' failed after 1 attempt: ValueError: cannot translate bad 1")
    assert "in to_upper of translating, " in lines[1]
    assert lines[1].endswith(numbers["fingerprint"])
    assert lines[2] == "        documents: bad 1, bad 2, ..."
    assert lines[5] == "        documents: bad luck"
    of_group = commands("documents", "monday", "--fingerprint", numbers["fingerprint"], "--json").json
    assert [document["document_id"] for document in of_group] == ["bad 1", "bad 2", "bad 33"]
    commands.submit("tuesday", "one")
    none = commands("errors", "tuesday")
    assert (none.code, none.out, none.err) == (Exit.DONE, "", "durable-batches: no document has failed\n")


def test_why_a_batch_is_where_it_is(commands: Commands) -> None:
    commands.submit("monday", "one")
    commands.submit("tuesday", "two", runs=False)
    assert commands("why", "monday").out == (
        "The batch 'monday' is in the state 'completed'.\n"
        "- It has ended: 1 of 1 document succeeded, 0 failed, 0 cancelled.\n"
    )
    (why,) = commands("why", "tuesday", "--json").json
    assert (why["batch_id"], why["state"]) == ("tuesday", "pending")
    (reason,) = why["reasons"]
    assert (reason["tag"], reason["workflow"], reason["known"]) == ("no-worker", "translate", [])
    assert reason["text"].startswith("No worker was started with the workflow 'translate'")


def test_what_a_worker_tells_is_shown(commands: Commands) -> None:
    activity = "ask\x1b[31m"

    async def leave() -> tuple[str, int]:
        async def no_time_passes(seconds: float) -> None:
            raise AssertionError(f"{seconds} s")

        async with opened(commands.make()) as store:
            scene = Scene(store, no_time_passes)
            batch_id = await scene.batch(2, concurrency=2)
            hand = await scene.worker("a", lease=3_600)
            claims = await hand.claim()
            now = SystemClock().now()
            since = now - 900_000_000
            note = WorkerNote(
                now,
                [RunningActivity(batch_id, claims[0].execution.position, 1, activity, since)],
                [LongCallsOf(batch_id, activity, 1, since)],
                BlockedAt("/app/jobs.py:41 in parse", now - 3_000_000, None),
            )
            heart = store.heart(hand.worker_id)
            assert isinstance(heart, NotedHeart)
            assert await asyncio.to_thread(heart.tell, encode_note(note), [LETTERS])
            heart.close()
            return batch_id, since

    batch_id, since = asyncio.run(leave())
    at = f"{from_micros(since):%Y-%m-%d %H:%M:%S}"
    first, second = (line for line in commands("documents", batch_id).out.splitlines() if line.startswith("document-"))
    assert first.endswith(f"on worker a; runs ask\\x1b[31m since {at}Z")
    assert second.endswith("on worker a")
    documents = commands("documents", batch_id, "--json").json
    assert [document["activity"] for document in documents] == [activity, None]
    assert documents[0]["activity_since"] == from_micros(since).isoformat(timespec="microseconds")
    why = commands("why", batch_id).out
    assert "- The event loop of the worker 'a' does not turn since " in why
    assert "UTC: it is blocked at /app/jobs.py:41 in parse. It has 2 documents of the batch.\n" in why
    assert f"1 call of it may never end, the first since {at} UTC: on 'a' (1).\n" in why
    assert f", in the activity 'ask\\x1b[31m' since {at} UTC.\n" in why
    (explained,) = commands("why", batch_id, "--json").json
    blocked, long, running = explained["reasons"]
    assert (blocked["tag"], blocked["where"], blocked["until"]) == ("blocked-loop", "/app/jobs.py:41 in parse", None)
    assert (long["tag"], long["workers"]) == ("long-calls", {"a": 1})
    assert (running["oldest_activity"], running["activities"]) == (activity, {activity: 1})
    assert f"no timeout   ask\\x1b[31m, 1 call since {at}Z\n" in commands("show", batch_id).out
    (shown,) = commands("show", batch_id, "--json").json
    assert [calls["activity"] for calls in shown["long_calls"]] == [activity]


def test_a_batch_is_cancelled_once(commands: Commands) -> None:
    commands.submit("monday", "one", "two", runs=False)
    done = commands("cancel", "monday", "--reason", "too late")
    assert (done.code, done.out) == (Exit.DONE, "cancelled monday: 0 of 2 documents had finished\n")
    again = commands("cancel", "monday")
    assert (again.code, again.out) == (Exit.ENDED_BEFORE, "monday had ended before: cancelled\n")
    assert commands("cancel", "monday", "--json").json[0]["cancelled"] is False
    assert "reason         too late\n" in commands("show", "monday").out
    watched = commands("watch", "monday")
    assert watched.code == Exit.BATCH_CANCELLED
    assert watched.out.endswith("cancelled: too late\n")


def test_a_batch_is_paused_and_resumed(commands: Commands) -> None:
    commands.submit("over", "one")
    commands.submit("monday", "one", "two", runs=False)
    done = commands("pause", "monday", "over", "--note", "prices \x1b look wrong", "--running", "documents")
    assert (done.code, done.out) == (Exit.DONE, "paused monday\nover had ended before: completed\n")
    assert commands("pause", "monday", "--running", "documents").out == "monday was paused before\n"
    assert "state          pending (paused)\n" in commands("show", "monday").out
    assert ": prices \\x1b look wrong\n" in commands("show", "monday").out
    assert "An operator has paused it at " in commands("why", "monday").out
    (tightened,) = commands("pause", "monday", "--json").json
    assert (tightened["batch_id"], tightened["paused"], tightened["state"]) == ("monday", True, "pending")
    assert commands("resume", "monday").out == "resumed monday\n"
    (again,) = commands("resume", "monday", "--json").json
    assert again["pauses"] == []
    for command in ("pause", "resume"):
        ended = commands(command, "over")
        assert (ended.code, ended.out) == (Exit.ENDED_BEFORE, "over had ended before: completed\n")


def test_options_of_a_batch_are_changed(commands: Commands) -> None:
    commands.submit("over", "one")
    commands.submit("monday", "one", "two", runs=False)
    given = ("--concurrency", "2", "--policy", "retry:5", "--document-timeout", "90s", "--deadline", "7d")
    done = commands("update", "monday", "over", *given)
    now = "concurrency 2, policy retry:5, timeout 1:30, deadline 168 h 00 min"
    assert (done.code, done.out) == (Exit.DONE, f"updated monday: {now}\nover had ended before: completed\n")
    shown = commands("show", "monday").out
    for line in (
        "concurrency    2\n",
        "policy         retry:5\n",
        "timeout        1:30\n",
        "deadline       168 h 00 min\n",
    ):
        assert line in shown
    # What is not given stays as it is.
    (lifted,) = commands("update", "monday", "--deadline", "none", "--json").json
    config = lifted["config"]
    assert (config["concurrency"], config["document_timeout"], config["deadline"]) == (2, 90, None)
    assert commands("show", "monday", "--json").json[0]["config"] == config
    ended = commands("update", "over", "--concurrency", "3")
    assert (ended.code, ended.out) == (Exit.ENDED_BEFORE, "over had ended before: completed\n")
    nothing = commands("update", "monday")
    assert (nothing.code, "give what is to be changed" in nothing.err) == (Exit.USAGE, True)


def test_the_exit_code_of_watch_is_how_the_batch_ended(commands: Commands) -> None:
    commands.submit("good", "one")
    commands.submit("some", "one", "bad")
    commands.submit("none", "bad")
    assert commands("watch", "good").code == Exit.DONE
    some = commands("watch", "some")
    assert some.code == Exit.DOCUMENTS_FAILED
    assert "2/2 documents  1 succeeded, 1 failed" in some.out
    none = commands("watch", "none")
    assert none.code == Exit.BATCH_FAILED
    assert "\nfailed: " in none.out
    (snapshot,) = commands("watch", "none", "--json").json
    assert snapshot["state"] == "failed"
    assert snapshot["error"]


def test_batches_are_chosen(commands: Commands) -> None:
    commands.submit("1", "one", tenant="north", kind="a")
    commands.submit("2", "one", tenant="south", kind="a")
    commands.submit("3", "one", runs=False)

    def chosen(*options: str) -> list[str]:
        return [batch["batch_id"] for batch in commands("list", "--json", *options).json]

    assert chosen() == ["3", "2", "1"]
    assert chosen("--state", "completed") == ["2", "1"]
    assert chosen("--state", "completed", "--state", "pending") == ["3", "2", "1"]
    assert chosen("--state", "translating") == []
    assert chosen("--unfinished") == ["3"]
    assert chosen("--label", "tenant=south") == ["2"]
    assert chosen("--label", "tenant=south", "--label", "kind=b") == []
    assert chosen("--workflow", "translate", "--limit", "0") == ["3", "2", "1"]
    assert chosen("--workflow", "another") == []
    assert chosen("--since", "1h") == ["3", "2", "1"]
    assert chosen("--since", "9999-01-01") == []
    assert chosen("--since", "2001-01-01T00:00+02:00") == ["3", "2", "1"]
    cut = commands("list", "--limit", "2", "--json")
    assert len(cut.out.splitlines()) == 2
    assert cut.err == "durable-batches: there are more than these 2: --limit 0 lists all\n"
    assert commands("list", "--limit", "3").err == ""
    assert commands("list", "--workflow", "another").err == "durable-batches: there are no such batches\n"


def test_a_long_list_is_printed_in_parts(on_file: Commands) -> None:
    on_file.submit("monday", *(f"document {number}" for number in range(450)), runs=False)
    lines = on_file("documents", "monday").out.splitlines()
    assert len(lines) == 451
    assert lines[-1].startswith("document 449  pending")


def test_the_environment_names_the_store(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    on_file.submit("monday", "one")
    monkeypatch.setenv("DURABLE_BATCHES_DSN", on_file.target[1])
    assert on_file.bare("show", "monday").code == Exit.DONE
    monkeypatch.setenv("DURABLE_BATCHES_DSN", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("DURABLE_BATCHES_STORE", on_file.target[1])
    assert on_file.bare("show", "monday").code == Exit.DONE


def test_any_store_is_migrated(commands: Commands) -> None:
    done = commands("migrate")
    assert (done.code, done.err) == (Exit.DONE, "")
    assert done.out.endswith(" is up to date\n")
