"""Notes of workers: what comes back, how long they get, and what of others' notes is ignored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.world import World
from tests.properties import modest

from durable_batches.lifecycle.notes import (
    LONGEST_NOTE,
    BlockedAt,
    CircuitOf,
    LimitedCallsOf,
    LongCallsOf,
    RunningActivity,
    TakenBatches,
    WorkerNote,
    decode_note,
    encode_note,
)
from durable_batches.lifecycle.primitives import LONGEST_NAME
from durable_batches.lifecycle.states import BatchId

AT = 1_900_000_000_000_000
BATCH, OTHER = BatchId("monday"), BatchId("Dienstag ☃")

NOTE = WorkerNote(
    AT,
    [
        RunningActivity(BATCH, 0, 1, "ask", AT - 90_000_000),
        RunningActivity(BATCH, 7, 3, "übersetze", AT - 1_000),
        RunningActivity(OTHER, -1, 1, "ask", AT),
    ],
    [LongCallsOf(BATCH, "ask", 2, AT - 900_000_000), LongCallsOf(OTHER, "wait", 1, AT - 700_000_000)],
    BlockedAt("/app/jobs.py:41 in parse", AT - 3_000_000, None),
    TakenBatches(frozenset([BATCH, OTHER]), {"team": "s\0uche", "": ""}, own=True),
)


def test_a_note_comes_back() -> None:
    assert decode_note(encode_note(NOTE)) == NOTE
    nothing = WorkerNote(AT)
    assert decode_note(encode_note(nothing)) == WorkerNote(AT, [], [])
    over = nothing._replace(blocked=BlockedAt("x.py:1 in <module>", AT - 9, AT - 4))
    assert decode_note(encode_note(over)) == over._replace(running=[], long_calls=[])
    for takes in (TakenBatches(), TakenBatches(metadata={"team": "a"}), TakenBatches(frozenset([BATCH]), more=True)):
        assert decode_note(encode_note(nothing._replace(takes=takes))) == WorkerNote(AT, [], [], takes=takes)


@pytest.mark.parametrize("length", [1, 32, LONGEST_NAME])
def test_of_many_batches_it_says_that_there_are_more(length: int) -> None:
    ids = frozenset(BatchId(f"{number:0{length}}"[-length:]) for number in range(2_000))
    # The others have the labels, and they are known to have them.
    takes = TakenBatches(ids, {"team": "a"}, own=True)
    running = [RunningActivity(BATCH, number, 1, "ask", AT) for number in range(20)]
    text = encode_note(WorkerNote(AT, running, takes=takes))
    assert len(text) <= LONGEST_NOTE
    found = decode_note(text)
    assert found is not None
    assert found.takes is not None
    assert found.takes.own
    assert found.takes.more == (frozenset(found.takes.batch_ids) != ids)
    assert found.takes.metadata == takes.metadata
    assert len(found.takes.batch_ids) * (length + len('"",')) >= 450 or not found.takes.more
    assert len(found.running) == len(running)


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_what_has_just_enough_room_is_kept(more: int, fits: bool) -> None:
    empty = len(json.dumps({"ids": ["", ""], "labels": {}, "own": True}, separators=(",", ":")))
    ids = [BatchId("a" * 500), BatchId("b" * (500 - empty + more))]
    text = encode_note(WorkerNote(AT, takes=TakenBatches(frozenset(ids), own=True)))
    found = decode_note(text)
    assert found is not None
    assert found.takes is not None
    assert (set(found.takes.batch_ids) == set(ids), found.takes.more) == (fits, not fits)


def test_a_note_tells_which_batches_may_be_taken() -> None:
    world = World()
    world.batch("monday", 1)
    batch = replace(world.batches[BATCH], metadata={"team": "a"})
    takes = TakenBatches(frozenset([BATCH]))
    assert takes.may_include(batch)
    assert TakenBatches(frozenset([OTHER]), {"team": "a"}).may_include(batch)
    assert not TakenBatches(frozenset([OTHER]), {"team": "b"}).may_include(batch)
    assert not TakenBatches().may_include(batch)
    assert TakenBatches(more=True).may_include(batch)


def test_what_has_no_room_at_all_may_be_anything() -> None:
    takes = TakenBatches(frozenset([BATCH]), {"\U0001f600" * 200: "a"})
    found = decode_note(encode_note(WorkerNote(AT, takes=takes)))
    assert found == WorkerNote(AT, [], [], takes=TakenBatches(more=True))


def test_a_note_is_ascii_and_a_document_takes_few_characters() -> None:
    assert encode_note(NOTE).isascii()
    running = [RunningActivity(BATCH, number, 1, "find_mentions", AT - 12_345_000) for number in range(100)]
    assert len(encode_note(WorkerNote(AT, running))) < LONGEST_NOTE


def test_what_has_run_for_the_longest_time_is_kept() -> None:
    running = [
        RunningActivity(BatchId(f"b{number}"), number, 1, "ask", AT - 10_000 + number) for number in range(1_000)
    ]
    calls = [LongCallsOf(BATCH, "ask", 2, AT)]
    text = encode_note(WorkerNote(AT, running, calls))
    assert LONGEST_NOTE / 4 < len(text) <= LONGEST_NOTE
    found = decode_note(text)
    assert found is not None
    assert [each.batch_id for each in found.running] == [each.batch_id for each in running[: len(found.running)]]
    assert found.long_calls == calls


_LONG = ["x" * LONGEST_NAME, "\x1b" * LONGEST_NAME, "\U0001f600" * LONGEST_NAME]
_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)
_names |= st.sampled_from(_LONG)
_moments = st.integers(AT - 10**15, AT)


@modest(25)
@given(
    st.builds(
        WorkerNote,
        st.just(AT),
        st.lists(
            st.builds(
                RunningActivity, _names.map(BatchId), st.integers(-1, 10**9), st.integers(1, 10**6), _names, _moments
            ),
            max_size=8,
        ),
        st.lists(st.builds(LongCallsOf, _names.map(BatchId), _names, st.integers(1, 10**6), _moments), max_size=8),
        st.none() | st.builds(BlockedAt, _names, _moments, st.none() | _moments),
        st.none()
        | st.builds(
            TakenBatches,
            st.frozensets(_names.map(BatchId), max_size=8),
            st.dictionaries(_names, _names, max_size=4),
            st.booleans(),
            st.booleans(),
        ),
        st.lists(st.builds(LimitedCallsOf, _names.map(BatchId), _names, st.integers(1, 10**6), _moments), max_size=8),
    )
)
def test_no_note_is_too_long_or_unreadable(note: WorkerNote) -> None:
    text = encode_note(note)
    assert len(text) <= LONGEST_NOTE
    assert text.isascii()
    found = decode_note(text)
    assert found is not None
    assert set(found.running) <= {each._replace(since=AT - (AT - each.since) // 1_000 * 1_000) for each in note.running}
    assert (found.blocked is None) == (note.blocked is None)
    if note.takes is None or found.takes is None:
        assert note.takes is found.takes
    else:
        assert set(found.takes.batch_ids) <= set(note.takes.batch_ids)
        assert found.takes == note.takes or (found.takes.more and found.takes.own == note.takes.own)


def test_circuits_of_limiters_that_calls_wait_for_come_back() -> None:
    limited = [LimitedCallsOf(BATCH, name, 2, AT - 5_000) for name in ("openai", "claude", "own")]
    circuits = [CircuitOf("openai", "open", AT + 90_000_000), CircuitOf("claude", "half-open", None)]
    note = WorkerNote(AT, [], [], limited=tuple(limited), circuits=tuple(circuits))
    assert decode_note(encode_note(note)) == note
    # Of a limiter that no call waits for, nothing is said; and no moment is out of every calendar.
    more = (*circuits, CircuitOf("idle", "open", None), CircuitOf("own", "open", 10**30))
    found = decode_note(encode_note(note._replace(circuits=more)))
    assert found is not None
    assert [each.limiter for each in found.circuits] == ["openai", "claude", "own"]
    # What a newer version calls otherwise is not known, and all the rest is.
    newer = json.loads(encode_note(note))
    newer["circuits"][0][1] = "melted"
    assert decode_note(json.dumps(newer)) == note._replace(circuits=tuple(circuits[1:]))


def test_what_a_newer_version_adds_is_ignored() -> None:
    newer = json.loads(encode_note(NOTE))
    newer["limiters"] = {"openai": ["open", 12]}
    newer["batches"]["monday"]["paused"] = [1]
    for entry in newer["batches"]["monday"]["running"]:
        entry.append("more")
    newer["blocked"].append({"gil": True})
    newer["takes"]["priorities"] = [1, 2]
    assert decode_note(json.dumps(newer)) == NOTE


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": None},
        {"at": "now"},
        {"at": -(10**30)},
        {"at": 10**30},
        {"at": True},
        {"activities": []},
        {"activities": [1, 2]},
        {"activities": ["", ""]},
        {"batches": []},
        {"batches": {"": {}}},
        {"batches": {"x": []}},
        {"batches": {"x": {"running": [[1]]}}},
        {"batches": {"x": {"running": [["1", 1, 0, 0]]}}},
        {"batches": {"x": {"running": [[1, 1, 0, 10**40]]}}},
        {"batches": {"x": {"running": [[1, 1, -7, 0]]}}},
        {"batches": {"x": {"long": 5}}},
        {"blocked": 5},
        {"blocked": []},
        {"blocked": ["x" * 10_000, 1, 2]},
        {"blocked": ["half a \ud800", 1, 2]},
        {"blocked": ["x", None, 2]},
        {"blocked": ["x", 1, 10**40]},
        {"circuits": 5},
        {"limiters": ["a"], "circuits": [["0", "open", None]]},
        {"limiters": ["a"], "circuits": [[0, "open", 10**40]]},
        {"circuits": [[0, "open", None]]},
        {"takes": []},
        {"takes": "x"},
        {"takes": {"ids": [""]}},
        {"takes": {"ids": [7]}},
        {"takes": {"ids": 7}},
        {"takes": {"labels": ["team"]}},
        {"takes": {"labels": {"team": 1}}},
    ],
    ids=str,
)
def test_what_is_not_understood_is_no_note(changes: dict[str, Any]) -> None:
    assert decode_note(json.dumps({**json.loads(encode_note(NOTE)), **changes})) is None


@pytest.mark.parametrize(
    "text", [None, "", "waits", "[]", "7", "null", "{}", "{" * 10_000, "[" * 90_000, "x" * 200_000]
)
def test_what_is_no_note_is_none(text: str | None) -> None:
    assert decode_note(text) is None
