"""One budget for a fleet: whatever workers ask for and whenever, no window sees more than the limit."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.fleet import Fleet, Member, most_in_a_window, run
from tests.properties import modest

from durable_batches.flow.admission import Ticket
from durable_batches.flow.budget import SLICE_SECONDS

OFFSETS = (0.0, -9_000.0, 5_000.0)


def fleet_of(count: int, **limits: Any) -> tuple[Fleet, list[Member]]:
    """Workers with clocks of their own."""
    fleet = Fleet()
    return fleet, [Member(fleet, f"worker-{number}", OFFSETS[number % 3], **limits) for number in range(count)]


# ---- the limit, and its use ------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [1, 3])
def test_a_loaded_fleet_uses_nearly_all_of_the_limit_and_never_more(busy: int) -> None:
    fleet, members = fleet_of(3, requests=600, tokens=60_000)
    chance = random.Random(1)
    for member in members[:busy]:
        for _ in range(2_000):
            member.call(chance.randint(1, 150))
    run(fleet, 90)
    assert most_in_a_window(fleet.requests()) <= 600
    assert most_in_a_window(fleet.begun) <= 60_000
    assert len(fleet.begun) >= 0.95 * 600 * 1.5
    # About one take a second and worker.
    assert fleet.takes <= 90 * busy * 1.3
    begun = [len(member.held) for member in members[:busy]]
    assert max(begun) - min(begun) <= 0.05 * sum(begun)


def test_calls_below_the_limit_cost_about_a_take_a_second() -> None:
    fleet, (member, *_) = fleet_of(2, requests=6_000)
    for _ in range(300):
        ticket = member.call()
        run(fleet, 0.05)
        assert ticket.granted is not None
        member.end(ticket)
    assert len(fleet.begun) == 300
    assert fleet.takes <= 40


def test_what_was_granted_and_not_used_comes_back() -> None:
    fleet, (one, two) = fleet_of(2, requests=600)
    for _ in range(20):
        one.call()
    run(fleet, 1)
    expected = one.call()
    run(fleet, 0.1)
    assert expected.granted is not None
    run(fleet, 5)
    for _ in range(2_000):
        two.call()
    run(fleet, 60)
    assert len(fleet.begun) >= 0.97 * 600
    assert most_in_a_window(fleet.requests()) <= 600


def test_tokens_that_were_estimated_and_not_used_are_others() -> None:
    fleet, members = fleet_of(3, tokens=6_000)
    for member in members:
        for _ in range(400):
            member.call(40)
    used: list[tuple[float, float]] = []
    for _ in range(90):
        run(fleet, 1)
        for member in members:
            for ticket in list(member.held):
                assert ticket.granted is not None
                member.settle(ticket, 20)
                used.append((ticket.granted - member.ahead, 20))
                member.end(ticket)
    assert most_in_a_window(used) <= 6_000
    assert len(used) >= 0.9 * 1.5 * 300, "half of each estimate comes back"


def test_a_debt_of_one_is_waited_for_by_all() -> None:
    fleet, (one, two) = fleet_of(2, tokens=600)
    ticket = one.call(10)
    run(fleet, 0.1)
    one.settle(ticket, 310)
    one.end(ticket)
    run(fleet, 2)
    other = two.call(10)
    run(fleet, 10)
    assert other.granted is None
    run(fleet, 22)
    assert other.granted is not None


def test_a_large_call_is_not_put_off_for_small_ones_of_others() -> None:
    fleet, (one, two) = fleet_of(2, tokens=6_000)
    for _ in range(1_000):
        two.call(50)
    run(fleet, 61)
    large = one.call(3_000)
    run(fleet, 61)
    assert large.granted is not None
    assert most_in_a_window(fleet.begun) <= 6_000


def test_a_budget_waits_no_longer_after_the_store_was_away() -> None:
    """Time that passed between takes that nobody answered has passed."""
    fleet, (member,) = fleet_of(1, requests=60)
    for _ in range(200):
        member.call()
    run(fleet, 10)
    credit = member.admission.credit
    assert credit is not None
    failed = 0
    for _ in range(300):
        fleet.now += 1
        if member.admission.asks_in(member.now()) <= 0:
            credit.failed(member.admission.asks_for(member.now()))
            failed += 1
    assert failed > 200
    large, before = fleet.now, len(fleet.begun)
    run(fleet, 1)
    assert len(fleet.begun) > before
    # By then the log of the last minute is empty: nothing was begun for five.
    grant = credit.grant
    assert grant is not None
    assert grant.left_requests is not None
    assert grant.left_requests >= 60 - (len(fleet.begun) - before) - 1
    assert grant.at >= large - 1


def test_slices_that_have_not_begun_are_others_when_their_worker_is_gone() -> None:
    """Whatever a fleet was granted for later, the one that comes after a restart waits for none of it."""
    fleet, members = fleet_of(30, requests=10, tokens=1_000)
    for member in members:
        member.call(50)
    run(fleet, 20)
    assert len(fleet.begun) == 4
    first = members[0]
    first.settle(first.asked[0], 500)
    run(fleet, 1)
    for member in members:
        fleet.kill(member)
    for number in range(30):
        member = Member(fleet, f"next-{number}", 0.0, requests=10, tokens=1_000)
        for _ in range(3):
            member.call(50)
    run(fleet, 60)
    # The debt of the first one is waited for.
    assert len(fleet.begun) <= 11
    run(fleet, 250)
    assert len(fleet.begun) >= 35
    assert most_in_a_window(fleet.requests()) <= 10
    assert fleet.data is not None
    assert len(fleet.data) < 20_000


def test_a_slice_whose_call_waits_no_more_is_given_back_before_it_begins() -> None:
    fleet, (one, two, three) = fleet_of(3, tokens=6_000)
    one.call(3_000)
    run(fleet, 1)
    large = two.call(3_000)
    run(fleet, 1)
    assert large.granted is None
    two.admission.withdraw(two.now(), large)
    run(fleet, 2)
    small = three.call(10)
    run(fleet, 30)
    # It waits until the first one is made up for, half a minute, and not for the other one as well.
    assert small.granted is not None
    before = fleet.takes
    run(fleet, 100)
    assert fleet.takes <= before + 2


def test_a_worker_that_has_nothing_to_do_gives_back_what_is_left_and_asks_no_more() -> None:
    fleet, (one, two) = fleet_of(2, requests=600)
    for _ in range(10):
        one.call()
    run(fleet, 1.5)
    one.call()
    run(fleet, 0.1)
    assert one.admission.waiting == 0
    # Nobody looks at it before this.
    due = one.admission.asks_in(one.now())
    assert due <= SLICE_SECONDS
    run(fleet, 5)
    credit = two.admission.credit
    assert credit is not None
    two.call()
    run(fleet, 0.1)
    assert credit.grant is not None
    assert credit.grant.left_requests == 600 - 12
    before = fleet.takes
    run(fleet, 100)
    assert fleet.takes <= before + 1


# ---- calls at once -----------------------------------------------------------------------------------------------


def test_calls_at_once_are_shared_and_come_back_with_a_worker() -> None:
    fleet, (one, two) = fleet_of(2, together=4)
    for _ in range(4):
        one.call()
    run(fleet, 3)
    assert (len(one.held), fleet.in_flight()) == (4, 4)
    for _ in range(4):
        two.call()
    run(fleet, 5)
    assert not two.held, "they are all in use"
    for _ in range(4):
        one.end(one.held[0])
        one.call()
        run(fleet, 2)
    assert (len(one.held), len(two.held)) == (2, 2), "each has half, since both want more"
    fleet.kill(one)
    run(fleet, 3)
    assert len(two.held) == 4


def test_calls_at_once_that_nobody_needs_any_more_are_others() -> None:
    fleet, (one, two) = fleet_of(2, together=2)
    first, second = one.call(), one.call()
    run(fleet, 1)
    one.end(first)
    one.end(second)
    other = two.call()
    run(fleet, 2 * SLICE_SECONDS + 1)
    assert other.granted is not None
    assert {slot.amount for slot in fleet.slots.values()} == {0, 1}


def test_workers_take_turns_where_there_are_fewer_calls_at_once() -> None:
    fleet, members = fleet_of(3, together=1)
    for member in members:
        for _ in range(50):
            member.call()
    began = {member.name: 0 for member in members}
    for _ in range(60):
        run(fleet, 0.5)
        assert fleet.in_flight() <= 1
        for member in members:
            for ticket in list(member.held):
                member.end(ticket)
                began[member.name] += 1
    assert min(began.values()) >= 5


def test_calls_at_once_that_follow_each_other_cost_no_take_each() -> None:
    fleet, (member,) = fleet_of(1, requests=6_000, together=5)
    for _ in range(500):
        member.call()
    while member.admission.is_busy:
        run(fleet, 0.05)
        assert len(member.held) <= 5
        for ticket in list(member.held):
            member.end(ticket)
    assert len(fleet.begun) == 500
    # Five seconds, and some takes until it is known how quickly calls follow each other.
    assert fleet.takes <= 15
    assert most_in_a_window(fleet.requests()) <= 6_000


# ---- different limits, cool-downs, clocks ------------------------------------------------------------------------


def test_of_different_limits_the_smallest_holds_while_its_worker_is_there() -> None:
    fleet = Fleet()
    old, new = Member(fleet, "old", 0.0, requests=60), Member(fleet, "new", 7.0, requests=600)
    for member in (old, new):
        for _ in range(1_000):
            member.call()
    run(fleet, 120)
    assert most_in_a_window(fleet.requests()) <= 60
    fleet.kill(old)
    before = len(fleet.begun)
    run(fleet, 120)
    assert most_in_a_window(fleet.requests()) <= 600
    assert len(fleet.begun) - before >= 900


def test_a_limit_that_a_worker_was_not_given_holds_for_it_while_another_has_it() -> None:
    """In a deploy that adds a limit, for the workers of before."""
    fleet = Fleet()
    old = Member(fleet, "old", 0.0, together=50)
    new = Member(fleet, "new", 7.0, requests=60, tokens=600, together=50)
    new.call(10)
    run(fleet, 2)
    for _ in range(300):
        old.call(20)
    for _ in range(140):
        run(fleet, 0.5)
        for ticket in list(old.held):
            old.end(ticket)
    assert len(fleet.begun) >= 30
    assert most_in_a_window(fleet.begun) <= 600
    old.call(20)
    used = fleet.begun[-1]
    run(fleet, 5)
    ticket = next(ticket for ticket in reversed(old.asked) if ticket.granted is not None)
    old.settle(ticket, 1_220)
    run(fleet, 60)
    assert fleet.begun[-1][0] < used[0] + 10, "what it took beyond its estimate is waited for"


def test_the_cool_down_of_one_is_that_of_all() -> None:
    fleet, members = fleet_of(3, requests=600)
    for member in members:
        for _ in range(500):
            member.call()
    run(fleet, 5)
    refused = fleet.now
    members[0].admission.refuse(members[0].now(), members[0].held[0], 20.0)
    run(fleet, 40)
    since = [at - refused for at, _ in fleet.begun if at > refused]
    # Slices that were granted before are used.
    assert not [at for at in since if 2 * SLICE_SECONDS < at < 20]
    assert len([at for at in since if at >= 20]) >= 100


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
def test_a_store_whose_clock_is_set_neither_stops_the_fleet_nor_lets_more_begin(jump: float) -> None:
    fleet, members = fleet_of(3, requests=600)
    for member in members:
        for _ in range(2_000):
            member.call()
    run(fleet, 20)
    fleet.store_is_off = jump
    run(fleet, 50)
    assert most_in_a_window(fleet.requests()) <= 600
    assert len(fleet.begun) >= 0.95 * 600 * 70 / 60


def test_a_cool_down_that_was_told_to_nobody_is_told_again() -> None:
    fleet, (one, two) = fleet_of(2, requests=600)
    one.call()
    run(fleet, 1)
    one.admission.refuse(one.now(), one.held[0], 20.0)
    assert one.ask()
    # As if the take had not been made.
    fleet.data = None
    one.answer(lost=True)
    assert one.ask()
    one.answer()
    two.call()
    assert two.ask()
    assert two.under_way is not None
    assert 19 < two.under_way[1].cool_down <= two.under_way[1].begins_in <= 20


# ---- slices and answers --------------------------------------------------------------------------------------------


def test_a_slice_that_is_used_at_its_end_is_no_more_than_a_minute_before_the_next() -> None:
    fleet, (one, two) = fleet_of(2, tokens=1_000)
    one.call(1_000)
    assert one.ask()
    fleet.now += 0.95
    one.answer()
    two.call(1_000)
    run(fleet, 65)
    (first, _), (second, _) = fleet.begun
    assert 60 <= second - first <= 61


def test_what_comes_after_its_slice_is_not_used() -> None:
    fleet, (one, two) = fleet_of(2, tokens=1_000)
    one.call(1_000)
    assert one.ask()
    two.call(1_000)
    assert two.ask()
    two.answer()
    fleet.now += 5
    one.answer()
    assert not fleet.begun
    # Its own comes back with the next take; others have theirs when they were promised it.
    run(fleet, 130)
    (first, _), (second, _) = fleet.begun
    assert second - first >= 60


def test_an_answer_that_is_lost_loses_what_it_granted_and_no_debt() -> None:
    fleet, (one, two) = fleet_of(2, tokens=600)
    ticket = one.call(10)
    run(fleet, 0.1)
    one.settle(ticket, 310)
    one.end(ticket)
    fleet.now += 2
    before = fleet.data
    assert one.ask()
    fleet.data = before
    one.answer(lost=True)
    run(fleet, 2)
    other = two.call(10)
    run(fleet, 10)
    assert other.granted is None


def test_a_call_that_does_not_begin_leaves_its_part_to_the_next() -> None:
    fleet, (one, _) = fleet_of(2, requests=600, tokens=60_000)
    ticket = one.call(700)
    run(fleet, 0.1)
    takes = fleet.takes
    for _ in range(5):
        assert ticket.granted is not None
        one.held.remove(ticket)
        one.admission.withdraw(one.now(), ticket)
        ticket = one.call(700)
    assert fleet.takes == takes
    run(fleet, 3)
    one.end(ticket)
    one.admission.settle(one.now(), ticket, 0)
    run(fleet, 3)
    grant = one.admission.credit.grant if one.admission.credit else None
    assert grant is not None
    assert (grant.left_requests, grant.left_tokens) == (599, 60_000)


def test_what_was_taken_is_known_also_when_a_worker_without_that_limit_takes() -> None:
    fleet = Fleet()
    limited = Member(fleet, "limited", 0.0, requests=60, tokens=1_000)
    limited.call(1_000)
    run(fleet, 1)
    fleet.kill(limited)
    other = Member(fleet, "other", 0.0, requests=60)
    other.call(1_000)
    run(fleet, 2)
    again = Member(fleet, "again", 0.0, requests=60, tokens=1_000)
    ticket = again.call(1_000)
    run(fleet, 10)
    assert ticket.granted is None


# ---- any interleaving --------------------------------------------------------------------------------------------


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(
            ["call", "calls", "ask", "ask", "answer", "answer", "lose", "end", "settle", "withdraw", "drop", "kill"]
        ),
        st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 1.1, 7.0, 30.0, 59.0]),
        st.integers(0, 100),
    ),
    max_size=80,
)
LIMITS: Any = {"requests": 40, "tokens": 1_000, "together": 5}


@modest(150)
@given(STEPS, st.lists(st.floats(-9_000, 1e6), min_size=3, max_size=3))
def test_no_interleaving_of_takes_lets_more_begin(
    steps: list[tuple[int, str, float, int]], offsets: list[float]
) -> None:
    """Takes are planned in one order and answered in another, or never; calls begin whenever they may."""
    fleet = Fleet()
    members = [Member(fleet, f"worker-{number}", offset, **LIMITS) for number, offset in enumerate(offsets)]
    used: dict[Ticket, tuple[float, float]] = {}
    lives = len(members)
    for number, what, seconds, amount in steps:
        fleet.now += seconds
        member = members[number]
        if what in ("call", "calls"):
            for _ in range(1 if what == "call" else 10):
                member.call(amount)
        elif what == "ask":
            member.ask()
        elif what in ("answer", "lose") and member.under_way is not None:
            member.answer(lost=what == "lose")
        elif what in ("end", "settle") and member.held:
            ticket = member.held[0]
            if what == "settle":
                # Downwards: what is used beyond the estimate is a debt that no limit could prevent.
                settled = min(amount, ticket.settled)
                member.settle(ticket, settled)
                used[ticket] = used[ticket][0], settled
            member.end(ticket)
        elif what == "withdraw" and member.asked:
            ticket = member.asked.pop()
            if ticket.granted is None:
                member.admission.withdraw(member.now(), ticket)
        elif what == "drop" and member.held:
            # It was admitted, and has not begun after all.
            ticket = member.held.pop()
            del used[ticket]
            member.admission.withdraw(member.now(), ticket)
        elif what == "kill":
            fleet.kill(member)
            members[number] = Member(fleet, f"worker-{lives}", member.ahead, **LIMITS)
            lives += 1
        for each in members:
            each.begin()
        for each in members:
            for ticket in each.held:
                used.setdefault(ticket, (fleet.now, ticket.tokens))
        assert fleet.in_flight() <= LIMITS["together"]
    assert most_in_a_window([(at, 1.0) for at, _ in used.values()]) <= LIMITS["requests"]
    assert most_in_a_window(list(used.values())) <= LIMITS["tokens"] + 1e-6
