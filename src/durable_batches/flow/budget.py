"""One budget for the limiters of a fleet: what a worker is granted of it, and when it may use that. Pure.

Each worker asks for what its calls need in the next slice of time, and is told when that slice begins. Slices follow
each other in the order in which they were asked for: a large call is not put off for small ones of other workers.

1. What is granted begins within a slice, which is a second long at most. The log of the last minute is longer by that:
   whenever calls begin within their slices, no window of a minute sees more than the limit.
2. What was granted and is not used comes back when its worker says so. Of a dead worker, it is lost: nobody knows. But
   slices that have not begun when their worker is gone are nobody's: those that come next do not wait for them.
3. Calls at once are held until the worker gives them back, or is gone. Workers that want some have equally many, and
   take turns where there are fewer than workers.
4. Of different limits for one budget, the smallest holds, while a worker that has it is registered.
5. A provider that refuses one worker refuses all: its cool-down is the fleet's. A breaker is each worker's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from durable_batches.flow.bucket import WINDOW_SECONDS, WindowedBucket
from durable_batches.lifecycle.records import SharedLimit, SharedSlot, SharedWrites, WorkerId

__all__ = ["FLEET_WINDOW_SECONDS", "SLICE_SECONDS", "Ask", "Grant", "Limits", "plan_take"]

N = TypeVar("N", int, float)

SLICE_SECONDS: Final = 1.0
"""How long a worker may use what it was granted."""
FLEET_WINDOW_SECONDS: Final = WINDOW_SECONDS + SLICE_SECONDS
"""Of the log of what was granted."""
_MERGED_SECONDS: Final = FLEET_WINDOW_SECONDS / 200
"""What is granted within this time shares an entry, so that there are 200 or so, a few kilobytes."""
_WANTS_SECONDS: Final = 2 * SLICE_SECONDS
"""How long a worker that asked counts as one that wants more."""
_RATE_SECONDS: Final = 60.0
"""How long a worker's lowered rate counts after it has last asked."""
_JUMP_SECONDS: Final = 1.0
"""By how much more than on the worker's clock the store's may have gone on; it was set otherwise."""


class Limits(NamedTuple):
    """Limits as a worker was given them; None: none."""

    requests: float | None
    tokens: float | None
    max_concurrent: int | None


class Ask(NamedTuple):
    """What a worker asks for, and what has become of what it was granted before."""

    limits: Limits
    requests: float | None
    """The limit that holds in this worker: less than its own where the provider has said so, or refuses."""
    tokens: float | None
    calls: Sequence[float] = ()
    """The tokens of the first calls that wait, in their order."""
    more_requests: float = 0.0
    """Expected beyond those in the next slice."""
    more_tokens: float = 0.0
    in_flight: int = 0
    wanted: int = 0
    """Calls at once, those in flight among them."""
    unused: Sequence[tuple[float, float, float]] = ()
    """Of what was granted, what no call has taken: `Grant.at`, requests and tokens."""
    debt: float = 0.0
    """Tokens that calls took beyond what was granted."""
    cool_down: float = 0.0
    """Seconds for which the provider wants no calls, as this worker was told."""
    elapsed: float | None = None
    """Seconds on the worker's clock since before its last take that was answered; None: none was."""
    begun: float = 0.0
    """Calls that began within the last slice, or this one: as many as that may end within the next and make room."""
    last: float = 0.0
    """`Grant.at` of the last slice that it keeps and that has not begun; 0: there is none."""


class Grant(NamedTuple):
    """What a worker may begin."""

    requests: float
    tokens: float
    at: float
    """When the slice begins, on the clock of the budget."""
    begins_in: float
    """Seconds until then."""
    at_once: int | None
    """Calls at once from now on, those in flight among them; None: any number."""
    held: int
    """Calls at once that others cannot have; more than `at_once` while too many are in flight."""
    cool_down: float
    """Seconds for which no call begins."""
    limits: Limits
    """Those that hold for the fleet, as workers were given them."""
    left_requests: float | None
    """What the last minute has left; None: it is not limited."""
    left_tokens: float | None


class _Row(NamedTuple):
    """What a worker's slot says."""

    held: int
    limits: Limits
    requests: float | None
    tokens: float | None
    at: float
    """When it asked last."""
    wants_until: float
    """Until when it counts as one that wants more."""
    wanted: int
    """Calls at once."""
    turn: float
    """Since when it has calls at once, or waits for some."""
    last: float = 0.0
    """When the last slice begins that it was granted."""


def plan_take(limit: SharedLimit, worker: WorkerId, ask: Ask) -> SharedWrites[Grant]:
    """Plan what a worker is granted, and what to write of it.

    Args:
        limit: As the store has it.
        worker: Who asks.
        ask: What for.
    """
    rows = {holder: _row_of(slot) for holder, slot in limit.slots.items()}
    state: dict[str, Any] = json.loads(limit.data) if limit.data else {}
    own = rows.get(worker)
    offset, moment = _moment(limit.now / 1_000_000, state, own, ask.elapsed)
    asks = bool(ask.calls) or ask.wanted > ask.in_flight
    rows[worker] = _Row(
        0 if own is None else own.held,
        ask.limits,
        ask.requests,
        ask.tokens,
        moment,
        moment + _WANTS_SECONDS if asks else 0.0,
        ask.wanted,
        moment if own is None else own.turn,
        ask.last,
    )
    limits = Limits(
        _smallest(row.limits.requests for row in rows.values()),
        _smallest(row.limits.tokens for row in rows.values()),
        _smallest(row.limits.max_concurrent for row in rows.values()),
    )
    cool_until = max(state.get("cool_until", -math.inf), moment + ask.cool_down if ask.cool_down > 0 else -math.inf)
    recent = [row for row in rows.values() if row.at >= moment - _RATE_SECONDS]
    requests = _bucket(state.get("requests"), moment, [row.requests for row in recent], limits.requests)
    tokens = _bucket(state.get("tokens"), moment, [row.tokens for row in recent], limits.tokens)
    debts: list[tuple[float, float]] = state.get("debts", [])
    debt = ask.debt
    kept_until = max(moment, *(row.last for row in rows.values()))
    for bucket in (requests, tokens):
        if bucket is not None:
            bucket.rewind(kept_until)
    if tokens is not None:
        # Debts are taken when the bucket is, which may be later: they go back with it.
        debt += sum(amount for at, amount in debts if at > tokens.at)
        debts = [(at, amount) for at, amount in debts if moment < at <= tokens.at]
    for at, *unused in ask.unused:
        for bucket, amount in zip((requests, tokens), unused, strict=True):
            if bucket is not None and amount > 0:
                bucket.release(moment, at, amount)
    if tokens is not None and debt > 0:
        debts.append((max(moment, tokens.at), debt))
        tokens.take(*debts[-1])
    at_once, row = _slots(rows, worker, ask, limits.max_concurrent, moment)
    hungry = sum(each.wants_until > moment for each in rows.values())
    room = math.inf if at_once is None else max(at_once - ask.in_flight, 0)
    if room >= 1:
        # Calls that end within the slice are followed by others.
        room += ask.begun
    begins, granted = _slice(requests, tokens, ask, max(moment, cool_until), max(hungry, 1), room)
    row = row._replace(
        wants_until=max(row.wants_until, begins + _WANTS_SECONDS) if asks else 0.0,
        last=begins if any(granted) else ask.last,
    )
    grant = Grant(
        *granted,
        begins,
        begins - moment,
        at_once,
        row.held,
        max(cool_until - moment, 0.0),
        limits,
        None if requests is None else requests.available(max(moment, requests.at)),
        None if tokens is None else tokens.available(max(moment, tokens.at)),
    )
    data = {
        "offset": offset,
        "latest": moment,
        "cool_until": cool_until if cool_until > moment else 0.0,
        # Kept also while nobody is here that has the limit.
        "requests": state.get("requests") if requests is None else requests.dump(),
        "tokens": state.get("tokens") if tokens is None else tokens.dump(),
        "debts": debts,
    }
    return SharedWrites(_encoded(data), SharedSlot(row.held, _encoded(row[1:])), grant)


def _smallest(limits: Iterable[N | None]) -> N | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _encoded(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _row_of(slot: SharedSlot) -> _Row:
    limits, *rest = json.loads(slot.data)
    # A newer library may say more.
    return _Row(slot.amount, Limits(*limits[: len(Limits._fields)]), *rest[: len(_Row._fields) - 2])


def _moment(now: float, state: Mapping[str, Any], own: _Row | None, elapsed: float | None) -> tuple[float, float]:
    """Compute the time of the budget, and its offset to the store's, which may have been set.

    It stands still rather than go back; where it has gone on for longer than the worker's clock, it was set forward.
    """
    offset: float = state.get("offset", 0.0)
    latest: float = state.get("latest", -math.inf)
    moment = now + offset
    if moment < latest:
        moment = latest
    elif own is not None and elapsed is not None and moment > own.at + elapsed + _JUMP_SECONDS:
        moment = max(latest, own.at + elapsed)
    return moment - now, moment


def _bucket(
    state: Any, moment: float, rates: Sequence[float | None], configured: float | None
) -> WindowedBucket | None:
    """Restore a bucket, with the smallest of the limits that hold now; None: there is no limit."""
    limit = _smallest((*rates, configured))
    if limit is None:
        return None
    return WindowedBucket(
        limit,
        window=FLEET_WINDOW_SECONDS,
        merged=_MERGED_SECONDS,
        state=state,
        kept_since=moment - FLEET_WINDOW_SECONDS,
    )


def _slice(
    requests: WindowedBucket | None,
    tokens: WindowedBucket | None,
    ask: Ask,
    moment: float,
    hungry: int,
    room: float,
) -> tuple[float, tuple[float, float]]:
    """Take a slice of the budget; return when it begins, and its requests and tokens.

    The first calls that wait, as far as they are no more than the worker's share of a slice, but one at least; and what
    is expected besides, as far as nobody has to wait for it.
    """
    buckets = [bucket for bucket in (requests, tokens) if bucket is not None]
    if not buckets or room < 1 or not (ask.calls or ask.more_requests):
        return moment, (0.0, 0.0)
    most_requests = math.inf if requests is None else requests.rate * SLICE_SECONDS / hungry
    most_tokens = math.inf if tokens is None else tokens.rate * SLICE_SECONDS / hungry
    count, amount = 0, 0.0
    for call in ask.calls:
        if count and (count + 1 > min(most_requests, room) or amount + call > most_tokens):
            break
        count, amount = count + 1, amount + call
    begins = max(moment, *(bucket.at for bucket in buckets))
    for bucket, taken in ((requests, count), (tokens, amount)):
        if bucket is not None:
            begins = max(begins, bucket.ready_at(begins, taken))
    granted_requests, granted_tokens = float(count), amount
    if count == len(ask.calls):
        granted_requests += min(ask.more_requests, max(most_requests - count, 0.0))
        granted_tokens += min(ask.more_tokens, max(most_tokens - amount, 0.0))
    if requests is not None:
        granted_requests = float(math.floor(max(count, min(granted_requests, requests.spare(begins)))))
        requests.take(begins, granted_requests)
    if tokens is not None:
        granted_tokens = max(amount, min(granted_tokens, tokens.spare(begins)))
        tokens.take(begins, granted_tokens)
    return begins, (granted_requests, granted_tokens)


def _slots(
    rows: dict[WorkerId, _Row], worker: WorkerId, ask: Ask, most: int | None, moment: float
) -> tuple[int | None, _Row]:
    """Decide how many calls at once the worker has; return them, and its row."""
    row = rows[worker]
    if most is None:
        return None, row._replace(held=0)
    wanting = {
        holder: each
        for holder, each in rows.items()
        if each.wanted > 0 and (holder == worker or each.wants_until > moment or each.held > 0)
    }
    share = _fair_share(wanting, worker, most, moment)
    others = sum(each.held for holder, each in rows.items() if holder != worker)
    held = max(ask.in_flight, min(share, ask.wanted, most - others))
    at_once = max(min(held, share), 0)
    turn = row.turn if (row.held > 0) == (held > 0) and row.wanted else moment
    row = rows[worker] = row._replace(held=held, turn=turn)
    return at_once, row


def _fair_share(wanting: Mapping[WorkerId, _Row], worker: WorkerId, most: int, moment: float) -> int:
    """Compute the share of one worker: what all that want some have, where there is enough for them; or its turn."""
    if worker not in wanting:
        return 0
    if len(wanting) > most:

        def place(holder: WorkerId) -> tuple[int, float, WorkerId]:
            # Who has had some for a slice goes after those that wait.
            each = wanting[holder]
            is_new = each.held > 0 and each.turn > moment - SLICE_SECONDS
            return 0 if is_new else 1 if each.held == 0 else 2, each.turn, holder

        return int(sorted(wanting, key=place).index(worker) < most)
    left, share = most, 0
    # From those that want least: what they leave is the others'.
    order = sorted(wanting, key=lambda holder: (wanting[holder].wanted, holder))
    for index, holder in enumerate(order):
        share = min(wanting[holder].wanted, math.ceil(left / (len(order) - index)))
        if holder == worker:
            break
        left -= share
    return share
