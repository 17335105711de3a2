"""Decide what each write does: pure functions from loaded rows and a request to the rows to be written.

A store loads the rows that a request concerns, under its locks, and writes the rows that a function returns, in the
same transaction. So no store decides anything, and every store decides the same.

`plan_facts` is total: a fact that does not apply is refused with a reason, never with an exception, so that one
bad fact cannot roll back the facts beside it.
"""

from durable_batches.lifecycle.isolation import ISOLATED_CRASHES
from durable_batches.lifecycle.planning.claims import (
    NEVER_STARTED,
    WOKEN,
    Candidates,
    claim_order,
    has_to_know_next_due,
    plan_claims,
)
from durable_batches.lifecycle.planning.commands import REQUESTS_ARE_KEPT, Needs, needs_of_command, plan_command
from durable_batches.lifecycle.planning.facts import checkpoints_to_load, executions_to_load, plan_facts
from durable_batches.lifecycle.planning.load import new_execution
from durable_batches.lifecycle.planning.machines import KnownWorker, gone_with_machine
from durable_batches.lifecycle.planning.release import Departure, plan_release, plan_return
from durable_batches.lifecycle.planning.unit_of_work import Loaded, Writes

__all__ = [
    "ISOLATED_CRASHES",
    "NEVER_STARTED",
    "REQUESTS_ARE_KEPT",
    "WOKEN",
    "Candidates",
    "Departure",
    "KnownWorker",
    "Loaded",
    "Needs",
    "Writes",
    "checkpoints_to_load",
    "claim_order",
    "executions_to_load",
    "gone_with_machine",
    "has_to_know_next_due",
    "needs_of_command",
    "new_execution",
    "plan_claims",
    "plan_command",
    "plan_facts",
    "plan_release",
    "plan_return",
]
