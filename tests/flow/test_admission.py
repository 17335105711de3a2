"""Limits, order and feedback as functions of time: whatever is asked for, in whatever order, no window sees more."""

from __future__ import annotations

import heapq
import math
import random
from datetime import timedelta
from itertools import count
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.flow.admission import Admission, Ticket
from durable_batches.flow.breaker import CircuitBreaker
from durable_batches.flow.bucket import WINDOW_SECONDS

MINUTE: Final = 60.0


def most_in_a_window(taken: list[tuple[float, float]]) -> float:
    """The most that any window of a minute sees."""
    most = total = 0.0
    first = 0
    for at, amount in taken:
        total += amount
        while taken[first][0] <= at - MINUTE:
            total -= taken[first][1]
            first += 1
        most = max(most, total)
    return most


class Run:
    """An admission, and what becomes of it, by a clock of its own."""

    def __init__(self, *, requests: int | None = None, tokens: int | None = None, together: int | None = None) -> None:
        self.admission = Admission(requests=requests, tokens=tokens, max_concurrent=together)
        self.requests, self.tokens = requests, tokens
        self.now = 1_000.0
        self.asked: list[Ticket] = []
        self.begun: list[Ticket] = []
        self.held: list[Ticket] = []
        self.taken: list[tuple[float, Ticket]] = []
        self.is_in_debt = False

    def grant(self) -> None:
        """Let those begin that may."""
        for ticket in self.admission.grant(self.now):
            self.begun.append(ticket)
            self.held.append(ticket)
            self.taken.append((self.now, ticket))

    def wait(self) -> None:
        """Wait until the next may begin."""
        seconds = self.admission.next_in(self.now)
        if seconds < math.inf:
            self.now += seconds
        self.grant()

    def do(self, step: str, share: float) -> None:
        """Take a step; `share` says how far, how much, or which."""
        admission, pick = self.admission, int(share * (len(self.held) - 1))
        match step:
            case "ask":
                tokens = math.floor((self.tokens or 0) * share**3)
                self.asked.append(admission.ask(tokens))
            case "wait":
                self.wait()
            case "idle":
                self.now += 90 * share**2
            case "creep":
                self.now += 0.15 * share
            case "end" | "more" | "less" if self.held:
                ticket = self.held.pop(pick)
                factor = {"end": 1.0, "more": 1.2, "less": 0.5}[step]
                self.is_in_debt |= step == "more"
                admission.settle(self.now, ticket, ticket.tokens * factor)
                admission.end(self.now, ticket, healthy=True)
            case "withdraw" if admission.waiting:
                waiting = [ticket for ticket in self.asked if ticket.granted is None]
                ticket = waiting[int(share * (len(waiting) - 1))]
                admission.withdraw(self.now, ticket)
                self.asked.remove(ticket)
            case "refuse" if self.held:
                ticket = self.held.pop(pick)
                admission.refuse(self.now, ticket, 30 * share if share < 0.7 else None)
                admission.end(self.now, ticket, healthy=None)
            case _:
                pass
        self.grant()

    def finish(self) -> None:
        """End all that run, until all have begun."""
        for _ in range(10_000):
            if not self.admission.waiting:
                break
            for ticket in self.held:
                self.admission.end(self.now, ticket, healthy=True)
            self.held.clear()
            self.wait()
        assert self.admission.waiting == 0
        for ticket in self.held:
            self.admission.end(self.now, ticket, healthy=True)

    def check(self) -> None:
        """No window saw more than the limits, and all began in the order in which they came."""
        if self.requests is not None:
            assert most_in_a_window([(at, 1.0) for at, _ in self.taken]) <= self.requests
        if self.tokens is not None and not self.is_in_debt:
            # As settled: what was not used may be used by others.
            assert most_in_a_window([(at, ticket.settled) for at, ticket in self.taken]) <= self.tokens + 1e-6
        assert [id(ticket) for ticket in self.begun] == [id(ticket) for ticket in self.asked]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "wait", "idle", "creep", "end", "more", "less", "withdraw", "refuse"]),
        st.floats(0, 1),
    ),
    max_size=80,
)


@modest(80)
@given(
    requests=st.sampled_from([None, 1, 3, 60, 3_000]),
    tokens=st.sampled_from([None, 100, 30_000]),
    together=st.sampled_from([None, 1, 4]),
    steps=STEPS,
    settles_up=st.booleans(),
)
def test_no_window_sees_more_and_nobody_waits_for_ever(
    requests: int | None, tokens: int | None, together: int | None, steps: list[tuple[str, float]], settles_up: bool
) -> None:
    run = Run(requests=requests, tokens=tokens, together=together)
    for step, share in steps:
        if settles_up or step != "more":
            run.do(step, share)
    # A large one never waits longer than a minute and its debts; all that hurries is over by then.
    run.finish()
    run.check()
    assert run.admission.in_flight == 0
    later = run.now + 1e5
    assert run.admission.requests_available(later) == requests
    assert run.admission.tokens_available(later) == tokens


@modest(60)
@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=30), st.integers(0, 29), st.booleans())
def test_one_that_gives_up_leaves_the_same(waits: list[float], which: int, is_admitted: bool) -> None:
    """With and without it, everybody else begins at the same time."""

    def moments(*, extra: bool) -> list[float]:
        admission = Admission(requests=60, tokens=1_000, max_concurrent=3)
        now, begun = 0.0, list[float]()
        for index, wait in enumerate(waits):
            now += wait
            if extra and index == which % len(waits):
                other = admission.ask(900)
                if is_admitted:
                    for ticket in admission.grant(now):
                        if ticket is not other:
                            begun.append(now)
                            admission.end(now, ticket, healthy=True)
                admission.withdraw(now, other)
            admission.ask(100)
            for ticket in admission.grant(now):
                begun.append(now)
                admission.end(now, ticket, healthy=True)
        return begun

    assert moments(extra=True) == moments(extra=False)


class Provider:
    """A provider that counts exactly, over the last minute before each arrival."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        self.log: list[tuple[float, float]] = []
        self.first = 0
        self.total = 0.0
        self.refused = 0
        self.used = 0.0

    def arrives(self, now: float, tokens: float) -> float | None:
        """Answer a request, or refuse it: then return in how many seconds there is room."""
        while self.first < len(self.log) and self.log[self.first][0] <= now - MINUTE:
            self.total -= self.log[self.first][1]
            self.first += 1
        if self.total + tokens > self.tokens + 1e-6:
            self.refused += 1
            return self.log[self.first][0] + MINUTE - now
        self.log.append((now, tokens))
        self.total += tokens
        return None


def load(
    admission: Admission, provider: Provider, *, sizes: tuple[int, int], minutes: int = 8, tells: bool = False
) -> tuple[float, int]:
    """Have 400 requests wait at any time; return the share of the limit that is used after a while, and how many end.

    Requests and answers travel for 0.05 to 0.5 s, and a call takes up to 8 s.
    """
    chance = random.Random(1)
    queue: list[tuple[float, int, str, Ticket | None, float | None]] = []
    numbers = count()
    now, used, ended = 0.0, 0.0, 0

    def push(at: float, what: str, ticket: Ticket | None = None, refusal: float | None = None) -> None:
        heapq.heappush(queue, (at, next(numbers), what, ticket, refusal))

    push(0.0, "timer")
    timer = 0.0
    while now < minutes * MINUTE:
        now, _, what, ticket, refusal = heapq.heappop(queue)
        if what == "arrives" and ticket is not None:
            seconds = provider.arrives(now, ticket.tokens)
            if seconds is None and now >= 3 * MINUTE:
                used += ticket.tokens
            push(now + chance.uniform(0.05, 0.5) + (chance.uniform(0.5, 8) if seconds is None else 0), "answered",
                 ticket, seconds)  # fmt: skip
        elif what == "answered" and ticket is not None:
            if refusal is not None:
                admission.refuse(now, ticket, min(refusal, 5.0))
                if tells:
                    admission.told(tokens=provider.tokens)
            else:
                ended += 1
            admission.end(now, ticket, healthy=None if refusal is not None else True)
        while admission.waiting < 400:
            admission.ask(chance.randint(*sizes))
        for each in admission.grant(now):
            push(now + chance.uniform(0.05, 0.5), "arrives", each)
        seconds = admission.next_in(now)
        if seconds < math.inf and (now + seconds < timer - 1e-9 or timer <= now):
            timer = max(now + seconds, now + 1e-6)
            push(timer, "timer")
    return used / ((minutes - 3) * provider.tokens), ended


def test_nearly_all_of_the_limit_is_used_and_nothing_is_refused() -> None:
    provider = Provider(400_000)
    share, ended = load(Admission(tokens=400_000, max_concurrent=256), provider, sizes=(200, 8_000))
    assert provider.refused == 0
    assert share >= 0.97
    assert ended > 500


def test_a_limit_that_the_provider_tells_is_kept_after_one_round_of_refusals() -> None:
    provider = Provider(300_000)
    share, _ = load(Admission(tokens=400_000, max_concurrent=256), provider, sizes=(200, 6_000), tells=True)
    assert share >= 0.94
    assert provider.refused <= 3


def test_a_limit_that_is_lower_than_configured_is_found() -> None:
    provider = Provider(300_000)
    share, _ = load(Admission(tokens=400_000, max_concurrent=256), provider, sizes=(200, 6_000))
    assert share >= 0.8
    assert provider.refused <= 40


def test_half_the_limit_at_once_goes_through_among_small_ones_in_its_turn() -> None:
    run = Run(tokens=1_000)
    for tokens in (*(10,) * 40, 500, *(10,) * 40):
        run.asked.append(run.admission.ask(tokens))
    run.grant()
    while run.admission.waiting:
        run.wait()
    run.check()
    large = run.begun[40]
    assert large.granted is not None
    # 40 small ones before it, at the rate of the limit; and it was not put off.
    assert large.granted - 1_000 <= 0.4 * WINDOW_SECONDS + 1e-6


def test_what_is_settled_upwards_is_waited_for_and_what_is_not_used_comes_back() -> None:
    admission = Admission(tokens=100)
    first = admission.ask(60)
    assert admission.grant(0.0) == [first]
    admission.settle(1.0, first, 90)
    admission.settle(1.0, first, 130)
    assert admission.tokens_available(1.0) == 0
    admission.ask(1)
    assert admission.next_in(1.0) > WINDOW_SECONDS / 2
    # The last word stands, however many there were.
    admission.settle(2.0, first, 20)
    assert admission.tokens_available(2.0) == 80
    # As long as 20 take to flow in, of which a few had.
    assert 5 < admission.next_in(2.0) < 12


def test_a_provider_that_charges_the_estimate_gives_nothing_back() -> None:
    admission = Admission(tokens=100, returns_unused=False)
    ticket = admission.ask(60)
    admission.grant(0.0)
    admission.settle(1.0, ticket, 10)
    assert admission.tokens_available(1.0) == 40
    admission.settle(1.0, ticket, 70)
    assert admission.tokens_available(1.0) == 30
    admission.settle(1.0, ticket, 65)
    assert admission.tokens_available(1.0) == 35


def test_admitted_and_not_begun_it_gives_all_back() -> None:
    admission = Admission(requests=1, tokens=10, max_concurrent=1, breaker=CircuitBreaker())
    first, second = admission.ask(10), admission.ask(10)
    assert admission.grant(0.0) == [first]
    admission.withdraw(0.0, first)
    assert admission.in_flight == 0
    assert admission.grant(0.0) == [second]
    # What has ended does not end again.
    admission.end(0.0, first, healthy=True)
    assert admission.in_flight == 1


def test_a_refusal_makes_all_wait_and_lowers_the_rate_once_for_all_that_had_begun() -> None:
    admission = Admission(requests=600)
    tickets = [admission.ask(0) for _ in range(4)]
    admission.grant(0.0)
    assert [admission.refuse(1.0, ticket, 20) for ticket in tickets] == [True, False, False, False]
    # The second one in a row lowered it by a third; those after it had begun before.
    assert admission.factor == pytest.approx(2 / 3)
    admission.ask(0)
    assert admission.next_in(1.0) == pytest.approx(20)
    assert admission.refused == 4
    later = 21.0
    admission.grant(later)
    # To half way at once, and the rest slowly.
    assert admission.requests_available(later + 60) == pytest.approx(490, abs=5)
    admission.requests_available(later + 800)
    admission.ask(0)
    admission.next_in(later + 800)
    assert admission.factor == 1.0


def test_refusals_round_after_round_wait_longer_where_the_provider_does_not_say() -> None:
    admission, now, waits = Admission(requests=6_000), 0.0, list[float]()
    for _ in range(9):
        ticket = admission.ask(0)
        now += admission.next_in(now)
        admission.grant(now)
        now += 0.1
        admission.refuse(now, ticket, None)
        admission.end(now, ticket, healthy=None)
        waits.append(admission.blocked_in(now))
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    ticket = admission.ask(0)
    now += admission.next_in(now)
    admission.grant(now)
    admission.end(now, ticket, healthy=True)
    ticket = admission.ask(0)
    now += admission.next_in(now)
    admission.grant(now)
    admission.refuse(now, ticket, None)
    assert admission.blocked_in(now) == pytest.approx(1)


def test_a_clock_that_goes_back_stands_still_instead() -> None:
    admission = Admission(requests=1)
    first = admission.ask(0)
    assert admission.grant(5_000.0) == [first]
    admission.end(5_000.0, first, healthy=True)
    second = admission.ask(0)
    assert admission.next_in(10.0) == pytest.approx(WINDOW_SECONDS)
    assert admission.grant(10.0 + WINDOW_SECONDS - 1) == []
    assert admission.grant(10.0 + WINDOW_SECONDS) == [second]


def test_after_an_hour_without_calls_there_is_no_burst() -> None:
    run = Run(requests=60)
    run.asked = [run.admission.ask(0) for _ in range(200)]
    run.now += 3_600
    run.grant()
    assert len(run.begun) == 1
    while run.admission.waiting:
        run.wait()
    run.check()


def test_the_breaker_lets_a_few_try_and_the_others_wait_their_turn() -> None:
    options = CircuitBreaker(failure_threshold=1, recovery_timeout=timedelta(seconds=10), success_threshold=1)
    admission = Admission(breaker=options)
    first, *others = (admission.ask(0) for _ in range(4))
    assert len(admission.grant(0.0)) == 4
    admission.end(0.0, first, healthy=False)
    assert admission.breaker_state(0.0) == "open"
    waiting = [admission.ask(0) for _ in range(3)]
    assert admission.next_in(1.0) == pytest.approx(9)
    assert admission.grant(10.0) == waiting[:1]
    admission.end(11.0, waiting[0], healthy=True)
    assert admission.grant(11.0) == waiting[1:]
    assert admission.estimate(11.0, others[0]) == 0


def test_those_whose_loop_is_gone_are_dropped_and_what_they_took_stays_taken() -> None:
    admission = Admission(requests=2, max_concurrent=1)
    old = admission.ask(0)
    admission.grant(0.0)
    admission.ask(0)
    admission.abandon()
    assert not admission.is_busy
    admission.end(0.0, old, healthy=True)
    assert admission.in_flight == 0
    assert admission.requests_available(0.0) == 1
