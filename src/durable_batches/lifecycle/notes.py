"""A worker's note: what it does, what holds it up, and which batches it takes from, written into its row.

It is written with each renewal of the worker's lease, and by a worker that takes from some batches only also when it is
registered.

It is for readers alone, and nothing is decided by it. It is JSON of bounded length. Versions that run side by side read
each other's: keys that a version does not know are ignored, and so is a note whose form it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, Micros, is_selected
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "CIRCUITS",
    "LONGEST_NOTE",
    "BlockedAt",
    "Circuit",
    "CircuitOf",
    "LimitedCallsOf",
    "LongCallsOf",
    "RunningActivity",
    "TakenBatches",
    "WorkerNote",
    "decode_note",
    "encode_note",
]

LONGEST_NOTE: Final = 2_000
"""Characters. A worker's row is written with each of its commits, and workers read each other's."""

_VERSION: Final = 1
"""It changes with the meaning of what is there; what is new has a key of its own."""

_LONGEST_PLACE: Final = 300

_LONGEST_TAKEN: Final = 1_000
"""Characters of what a worker takes from."""

_LONGEST_READ: Final = 100_000
"""Characters: newer versions may write longer notes, but nobody writes one like that."""

_LAST: Final = 250_000_000_000_000_000
"""Microseconds; in the year 9892, so that it is a moment in every calendar."""


Circuit: TypeAlias = Literal["closed", "open", "half-open"]
"""The state of a limiter's circuit breaker: all calls pass, none does, or a few do."""

CIRCUITS: Final[Sequence[Circuit]] = ("closed", "half-open", "open")
"""In this order, each lets less pass than the one before."""


class RunningActivity(NamedTuple):
    """The activity that a document or a resolver runs."""

    batch_id: BatchId
    position: int
    attempt: int
    """Of the execution: of another one, the note says nothing."""
    activity: str
    """Of several that run at the same time, the one that began first."""
    since: Micros


class LongCallsOf(NamedTuple):
    """Calls of an activity without a timeout that run for longer than is usual."""

    batch_id: BatchId
    activity: str
    calls: int
    since: Micros
    """When the first of them began."""


class LimitedCallsOf(NamedTuple):
    """Calls of a batch that wait for permits of a limiter."""

    batch_id: BatchId
    limiter: str
    calls: int
    since: Micros
    """Since when the first of them waits."""


class CircuitOf(NamedTuple):
    """The circuit breaker of a limiter that calls wait for."""

    limiter: str
    state: Circuit
    until: Micros | None
    """When the next call may begin; None: when another has ended, or that is not known."""


class BlockedAt(NamedTuple):
    """Where the worker's event loop was kept from turning the last time."""

    place: str
    """File, line and function."""
    since: Micros
    until: Micros | None
    """None: it does not turn yet."""


class TakenBatches(NamedTuple):
    """The batches that a worker takes from, where these are not all of its workflows."""

    batch_ids: Collection[BatchId] = frozenset()
    """These batches, and ..."""
    metadata: Mapping[str, str] = {}
    """... those with all of these labels; none: those of `batch_ids` alone."""
    own: bool = False
    """Whether `batch_ids` are those that its process has submitted or attached to: there will be others."""
    more: bool = False
    """Whether there are more, for which there was no room: then nothing is known of batches that are not named."""

    def may_include(self, batch: BatchRecord) -> bool:
        """Whether the batch is among them, as far as is known."""
        return self.more or is_selected(batch, self.batch_ids, self.metadata)


class WorkerNote(NamedTuple):
    """A note. Moments are of the worker's wall clock."""

    at: Micros
    running: Sequence[RunningActivity] = ()
    """First what began first: where there are too many, the others are left out."""
    long_calls: Sequence[LongCallsOf] = ()
    blocked: BlockedAt | None = None
    takes: TakenBatches | None = None
    """None: it takes from all batches of its workflows, or does not say."""
    limited: Sequence[LimitedCallsOf] = ()
    circuits: Sequence[CircuitOf] = ()
    """Of the limiters in `limited`."""


# ---- writing ---------------------------------------------------------------------------------------------------------


def encode_note(note: WorkerNote) -> str:
    """Encode a note as ASCII, in at most `LONGEST_NOTE` characters; what does not fit is left out."""
    if note.blocked is not None:
        note = note._replace(blocked=_shorter(note.blocked, _LONGEST_PLACE))
    if note.takes is not None:
        note = note._replace(takes=_fewer(note.takes))
    while len(text := _encoded(note)) > LONGEST_NOTE:
        if note.running:
            note = note._replace(running=note.running[: len(note.running) * LONGEST_NOTE // len(text)])
        elif note.limited:
            note = note._replace(limited=note.limited[:-1])
        elif note.long_calls:
            note = note._replace(long_calls=note.long_calls[:-1])
        else:
            # Each of its characters takes many, escaped.
            assert note.blocked is not None
            note = note._replace(blocked=_shorter(note.blocked, len(note.blocked.place) // 2))
    return text


def _shorter(blocked: BlockedAt, length: int) -> BlockedAt:
    # Of a path, the end tells more.
    return blocked._replace(place=blocked.place[-length:])


def _fewer(taken: TakenBatches) -> TakenBatches:
    """Leave out what has no room; a reader must know that there is more."""
    ids = sorted(taken.batch_ids)
    while len(text := _json(_taken(taken))) > _LONGEST_TAKEN:
        if not ids:
            return TakenBatches(own=taken.own, more=True)
        ids = ids[: len(ids) * _LONGEST_TAKEN // len(text)]
        taken = taken._replace(batch_ids=frozenset(ids), more=True)
    return taken


def _taken(taken: TakenBatches) -> dict[str, object]:
    flags = {name: True for name, said in (("own", taken.own), ("more", taken.more)) if said}
    return {"ids": sorted(taken.batch_ids), "labels": dict(taken.metadata), **flags}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _encoded(note: WorkerNote) -> str:
    names: dict[str, int] = {}
    batches: dict[str, dict[str, list[list[int]]]] = {}
    for each in note.running:
        entry = [each.position, each.attempt, _index(names, each.activity), _before(note, each.since)]
        batches.setdefault(each.batch_id, {}).setdefault("running", []).append(entry)
    for calls in note.long_calls:
        entry = [_index(names, calls.activity), calls.calls, _before(note, calls.since)]
        batches.setdefault(calls.batch_id, {}).setdefault("long", []).append(entry)
    limiters: dict[str, int] = {}
    for limited in note.limited:
        entry = [_index(limiters, limited.limiter), limited.calls, _before(note, limited.since)]
        batches.setdefault(limited.batch_id, {}).setdefault("limited", []).append(entry)
    found: dict[str, object] = {"v": _VERSION, "at": note.at}
    if batches:
        found |= {"activities": list(names), "batches": batches}
    if limiters:
        found["limiters"] = list(limiters)
    circuits = [
        [limiters[each.limiter], each.state, None if each.until is None else _after(note, each.until)]
        for each in note.circuits
        if each.limiter in limiters
    ]
    if circuits:
        found["circuits"] = circuits
    if note.blocked is not None:
        found["blocked"] = list(note.blocked)
    if note.takes is not None:
        found["takes"] = _taken(note.takes)
    return _json(found)


def _index(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))


def _before(note: WorkerNote, moment: Micros) -> int:
    """Milliseconds before the note: few digits, since there are many."""
    return max(note.at - moment, 0) // 1_000


def _after(note: WorkerNote, moment: Micros) -> int:
    """Milliseconds after the note, in a calendar's years."""
    return max(min(moment, _LAST) - note.at, 0) // 1_000


# ---- reading ---------------------------------------------------------------------------------------------------------


def decode_note(text: str | None) -> WorkerNote | None:
    """Decode a note; None where there is none, or it is not understood."""
    if text is None or len(text) > _LONGEST_READ:
        return None
    try:
        found = json.loads(text)
        return _decoded(found) if found["v"] == _VERSION else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _decoded(found: dict[str, Any]) -> WorkerNote:
    at = _moment(found["at"])
    names = [_name(name) for name in found.get("activities", ())]
    limiters = [_name(name) for name in found.get("limiters", ())]
    blocked, takes = found.get("blocked"), found.get("takes")
    batches = {BatchId(_name(batch_id)): of_batch for batch_id, of_batch in found.get("batches", {}).items()}
    return WorkerNote(
        at,
        [
            RunningActivity(batch_id, _number(position), _number(attempt), names[_number(name)], _since(at, before))
            for batch_id, of_batch in batches.items()
            for position, attempt, name, before in _entries(of_batch, "running", 4)
        ],
        [
            LongCallsOf(batch_id, names[_number(name)], _number(calls), _since(at, before))
            for batch_id, of_batch in batches.items()
            for name, calls, before in _entries(of_batch, "long", 3)
        ],
        None if blocked is None else _blocked(*blocked[:3]),
        None if takes is None else _takes(takes),
        tuple(
            LimitedCallsOf(batch_id, limiters[_number(name)], _number(calls), _since(at, before))
            for batch_id, of_batch in batches.items()
            for name, calls, before in _entries(of_batch, "limited", 3)
        ),
        tuple(
            CircuitOf(limiters[_number(name)], state, None if after is None else _moment(at + _number(after) * 1_000))
            for name, state, after in _entries(found, "circuits", 3)
            if state in CIRCUITS
        ),
    )


def _entries(of_batch: dict[str, Any], key: str, length: int) -> Iterator[list[Any]]:
    """Yield entries, without what a newer version has added at their ends."""
    return (entry[:length] for entry in of_batch.get(key, ()))


def _blocked(place: str, since: Micros, until: Micros | None) -> BlockedAt:
    return BlockedAt(_name(place), _moment(since), None if until is None else _moment(until))


def _takes(takes: dict[str, Any]) -> TakenBatches:
    labels = takes.get("labels", {})
    return TakenBatches(
        frozenset(BatchId(_name(batch_id)) for batch_id in takes.get("ids", ())),
        {_text(name): _text(value) for name, value in labels.items()},
        own=bool(takes.get("own")),
        more=bool(takes.get("more")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _since(at: Micros, before: object) -> Micros:
    return _moment(at - _number(before) * 1_000)


def _number(value: object) -> int:
    if type(value) is not int or value < RESOLVER_POSITION:
        raise TypeError
    return value


def _moment(value: object) -> Micros:
    moment = _number(value)
    if not 0 <= moment <= _LAST:
        raise ValueError
    return moment


def _name(value: str) -> str:
    if problem_with_name(value) is not None:
        raise ValueError
    return value
