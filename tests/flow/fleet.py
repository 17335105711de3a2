"""A fleet of workers that share one budget: pure, each with a clock of its own, and a store that plans their takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from durable_batches.flow.admission import Admission, Ticket
from durable_batches.flow.budget import Ask, Grant, plan_take
from durable_batches.lifecycle.records import SharedLimit, SharedSlot, WorkerId

__all__ = ["Fleet", "Member", "most_in_a_window"]


def most_in_a_window(taken: Sequence[tuple[float, float]], window: float = 60.0) -> float:
    """The most that any window sees, of what was taken when."""
    most = total = 0.0
    first = 0
    ordered = sorted(taken)
    for at, amount in ordered:
        total += amount
        while ordered[first][0] <= at - window:
            total -= ordered[first][1]
            first += 1
        most = max(most, total)
    return most


class Fleet:
    """The store, and the one time that all clocks show in their own ways."""

    def __init__(self) -> None:
        self.now = 10_000.0
        self.store_is_off = 0.0
        """By how many seconds the store's clock was set."""
        self.data: bytes | None = None
        self.slots: dict[WorkerId, SharedSlot] = {}
        self.members: list[Member] = []
        self.begun: list[tuple[float, float]] = []
        """When calls began, and their tokens."""
        self.takes = 0

    def plan(self, worker: WorkerId, ask: Ask) -> Grant:
        """Take, at this moment."""
        self.takes += 1
        now = round((self.now + self.store_is_off) * 1_000_000)
        writes = plan_take(SharedLimit(now, self.data, self.slots), worker, ask)
        self.data = writes.data
        self.slots = {**self.slots, worker: writes.slot}
        return writes.answer

    def requests(self) -> list[tuple[float, float]]:
        """When calls began, each as one."""
        return [(at, 1.0) for at, _ in self.begun]

    def in_flight(self) -> int:
        """Calls of workers that live."""
        return sum(member.admission.in_flight for member in self.members)

    def kill(self, member: Member) -> None:
        """Its calls end, and its row is deleted."""
        self.members.remove(member)
        self.slots = {worker: slot for worker, slot in self.slots.items() if worker != member.worker}


@dataclass
class Member:
    """One worker."""

    fleet: Fleet
    name: str
    ahead: float
    """Its clock."""
    requests: int | None = None
    tokens: int | None = None
    together: int | None = None
    asked: list[Ticket] = field(default_factory=list[Ticket])
    held: list[Ticket] = field(default_factory=list[Ticket])
    under_way: tuple[Ask, Grant, float] | None = None
    """A take that was made, and is not answered."""

    def __post_init__(self) -> None:
        self.worker = WorkerId(self.name)
        self.admission = Admission(
            requests=self.requests, tokens=self.tokens, max_concurrent=self.together, shared=True
        )
        self.fleet.members.append(self)

    def now(self) -> float:
        """Its time."""
        return self.fleet.now + self.ahead

    def call(self, tokens: float = 0.0) -> Ticket:
        """Have a call wait."""
        ticket = self.admission.ask(tokens, self.now())
        self.asked.append(ticket)
        self.begin()
        return ticket

    def begin(self) -> None:
        """Begin those that may."""
        for ticket in self.admission.grant(self.now()):
            self.held.append(ticket)
            self.fleet.begun.append((self.fleet.now, ticket.tokens))

    def end(self, ticket: Ticket) -> None:
        """End a call."""
        self.held.remove(ticket)
        self.admission.end(self.now(), ticket, healthy=True)
        self.begin()

    def ask(self) -> bool:
        """Make a take, if it is due; it is answered later. Return whether one was made."""
        if self.under_way is not None or self.admission.asks_in(self.now()) > 1e-6:
            return False
        ask = self.admission.asks_for(self.now())
        self.under_way = ask, self.fleet.plan(self.worker, ask), self.now()
        return True

    def answer(self, *, lost: bool = False) -> None:
        """Have it answered, or never."""
        assert self.under_way is not None
        (ask, grant, asked), self.under_way = self.under_way, None
        credit = self.admission.credit
        assert credit is not None
        if lost:
            credit.failed(ask)
        else:
            self.admission.granted(grant, asked, self.now())
        self.begin()

    def next_in(self) -> float:
        """In how many seconds something happens by itself."""
        begins = self.admission.next_in(self.now())
        return begins if self.under_way is not None else min(begins, self.admission.asks_in(self.now()))

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """Say what a call took."""
        self.admission.settle(self.now(), ticket, tokens)


def run(fleet: Fleet, seconds: float, *, latency: float = 0.01) -> None:
    """Let time pass from event to event: takes are answered after so long."""
    until = fleet.now + seconds
    while True:
        for member in fleet.members:
            member.begin()
            member.ask()
        due = min((member.next_in() for member in fleet.members), default=math.inf)
        if any(member.under_way for member in fleet.members):
            due = min(due, latency)
        if fleet.now + due > until:
            fleet.now = until
            return
        fleet.now += max(due, 1e-4)
        for member in fleet.members:
            if member.under_way is not None and fleet.now + member.ahead - member.under_way[2] >= latency - 1e-9:
                member.answer()
