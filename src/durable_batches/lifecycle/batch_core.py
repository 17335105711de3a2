"""The part of a batch's record that is the state machine's own: `BatchRecord.core`, JSON that no store reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

from pydantic_core import from_json, to_json

from durable_batches.lifecycle.budget import BUDGET_GENERATION, BudgetPause
from durable_batches.lifecycle.config import RECORDED, BatchConfig
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES, Isolation
from durable_batches.lifecycle.pauses import OperatorPause
from durable_batches.lifecycle.policies import ContinueOnFailure, RetryFailed
from durable_batches.lifecycle.quota import QuotaPause
from durable_batches.lifecycle.records import BatchRecord, ExecutionRecord, Micros, WorkerId
from durable_batches.lifecycle.spending import SpendSums
from durable_batches.lifecycle.stage_counts import StageCounts
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "BatchCore",
    "CountedGroups",
    "Definition",
    "Pauses",
    "ResolverPhase",
    "budget_pause_of",
    "decode_core",
    "decode_definition",
    "definition_of",
    "encode_core",
    "encode_definition",
    "isolation_of",
    "needs_of",
    "new_batch",
    "operator_pause_of",
    "policy_needs_of",
    "quota_pause_of",
]

ResolverPhase: TypeAlias = Literal["idle", "due", "running"]


class _FirstCore(TypedDict):
    definition: str
    """The `Definition`, as JSON of its own: it is parsed once for all records that have the same."""
    at: list[int]
    """The `StageCounts`."""
    phase: ResolverPhase
    error: str
    """Why the run failed; empty in another state."""
    reason: str
    """Why the run was cancelled; empty in another state."""
    sealed_by: WorkerId | None
    cancelled_by: str | None
    """The id of the request that cancelled the run."""
    started_at: Micros | None
    """When the first document was claimed."""
    ended_at: Micros | None
    last_event_at: NotRequired[Micros]
    """The time of the last event, which no later one precedes."""


class CountedGroups(TypedDict):
    """The groups that the failures of a run were counted in."""

    run: int
    fingerprints: list[str]


class Pauses(TypedDict, total=False):
    """The pauses in force, by their reasons, but for an operator's."""

    quota: QuotaPause


class BatchCore(_FirstCore, total=False):
    """The fields in the order in which they are stored.

    A dictionary also in memory, so that an older version of the library writes back what a newer one added. A field
    that is added is not required, because batches that were stored before lack it, and most batches do without.
    """

    earliest_due: Micros | None
    """No execution of the batch is due before this; None: none will be by time. There only while nothing is pending and
    something waits, and only in stores of level 2."""
    failure_groups: CountedGroups
    """There once a document has failed, and only in stores of level 2."""
    suspects: int
    """Its unfinished executions that have crashed `ISOLATED_CRASHES` times or more; not there where there is none."""
    isolation: Isolation
    """The latest isolation of these; not there where there is none of them."""
    seen_again: list[WorkerId]
    """Sessions that were seen again after crashes had been counted for them, where other workers owned executions then
    that had these crashes: the releases of those executions take them back."""
    pauses: Pauses
    """There while one of these is in force."""
    operator_pause: OperatorPause
    """There while it is in force; so `BatchRecord.paused` is set."""
    resumed_by: str
    """The id of the latest request that resumed it, in stores of level 1, which keep no requests."""
    cancelled_at: list[int]
    """The `StageCounts` of the documents that had not finished when the run ended; there where there were any."""
    refused: dict[str, int]
    """How many pauses for a quota a document has begun, by its position; there while one has that has not finished."""
    spent: SpendSums
    """There once a call has spent something."""
    reserved: dict[str, dict[str, list[Any]]]
    """Room in the budget that is reserved for calls which run: tokens, and money as text, by the position of the
    document and the key of the call. There while there is any."""
    budget_pause: BudgetPause
    """There while the batch is paused because its budget is spent; so `BatchRecord.paused` is set."""


def decode_core(stored: bytes) -> BatchCore:
    """Decode a record's core."""
    core: BatchCore = from_json(stored)
    return core


def encode_core(core: BatchCore) -> bytes:
    """Encode a record's core."""
    return to_json(core)


class Definition(NamedTuple):
    """A batch's stages, resolver and configuration: fixed when it is created."""

    stages: tuple[str, ...]
    resolver: bool
    config: BatchConfig
    defaults: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """Of each activity, by name and version: digests of its defaults, which the keys of its calls leave out."""
    origin: Mapping[str, str] = MappingProxyType({})
    """The trace of the submission, as `traceparent` and its like; empty where it had none."""


def definition_of(record: BatchRecord) -> Definition:
    """Read a batch's definition from its record."""
    return _definition_in(record.core)


@lru_cache(maxsize=64)
def _definition_in(core: bytes) -> Definition:
    return decode_definition(decode_core(core)["definition"])


@lru_cache(maxsize=1024)
def decode_definition(text: str) -> Definition:
    """Decode a core's definition."""
    data = from_json(text)
    if _MIN_FAILURES in data:
        _policies_in(data["config"])[-1][_MIN_FAILURES] = data[_MIN_FAILURES]
    later = {**data.get("later", {}), **({_BUDGET: data[_BUDGET]} if _BUDGET in data else {})}
    config = BatchConfig.model_validate({**data["config"], **later}, context=RECORDED)
    return Definition(tuple(data["stages"]), data["resolver"], config, data.get("defaults", {}), data.get("origin", {}))


def isolation_of(record: BatchRecord, execution: ExecutionRecord) -> Isolation | None:
    """Return the isolation in which a claimed execution runs, as of its claim; None: it runs like any other.

    Args:
        record: Its batch, as the claim has left it.
        execution: As the claim has made it.
    """
    if execution.crashes < ISOLATED_CRASHES:
        return None
    isolation = decode_core(record.core).get("isolation")
    if isolation is None or isolation["worker"] != execution.owner or isolation["until"] <= execution.updated_at:
        return None
    return isolation


def encode_definition(definition: Definition) -> str:
    """Encode a definition for a core."""
    config = definition.config.model_dump(mode="json")
    # An older version reads batches of later ones, and takes no option that it does not know.
    later = {name: config.pop(name) for name in _LATER_OPTIONS}
    budget = config.pop(_BUDGET)
    for policy in _policies_in(config):
        policy.pop(_MIN_FAILURES, None)
    fields: dict[str, object] = {"stages": definition.stages, "resolver": definition.resolver, "config": config}
    if any(getattr(definition.config, name) != BatchConfig.model_fields[name].default for name in later):
        fields["later"] = later
    min_failures = _min_failures(definition)
    if min_failures != 1:
        fields[_MIN_FAILURES] = min_failures
    if budget is not None:
        fields[_BUDGET] = budget
    if definition.defaults:
        fields["defaults"] = dict(definition.defaults)
    if definition.origin:
        fields["origin"] = dict(definition.origin)
    return to_json(fields).decode()


_LATER_OPTIONS: Final = ("quota_patience",)
"""The options that came after those which every version knows."""

_BUDGET: Final = "budget"
"""That came later still: a field of its own, since 0.2.0 takes no other option among the later ones."""

_MIN_FAILURES: Final = "min_failures"
"""That of a policy, which came later, too."""


def _policies_in(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the failure policies of a configuration in JSON: the batch's, and the one that applies after retries."""
    policy = config["failure_policy"]
    return [policy, policy["then"]] if "then" in policy else [policy]


def _min_failures(definition: Definition) -> int:
    policy = definition.config.failure_policy
    final = policy.then if isinstance(policy, RetryFailed) else policy
    return final.min_failures if isinstance(final, ContinueOnFailure) else 1


def needs_of(definition: Definition) -> int:
    """Return the generation of the library that runs a batch as it is defined."""
    if definition.config.budget is not None:
        return BUDGET_GENERATION
    return policy_needs_of(definition)


def policy_needs_of(definition: Definition) -> int:
    """Return the generation of the library that judges failures by a batch's policy."""
    return 0 if _min_failures(definition) == 1 else _RATIO_GENERATION


_RATIO_GENERATION: Final = 2
"""That which knows `min_failures`; an older one would end the batch too early."""


def quota_pause_of(record: BatchRecord) -> QuotaPause | None:
    """Read a batch's pause for a quota from its record; None: it has none."""
    if b'"pauses"' not in record.core:
        return None
    return decode_core(record.core).get("pauses", {}).get("quota")


def operator_pause_of(record: BatchRecord) -> OperatorPause | None:
    """Read a batch's pause by an operator from its record; None: it has none."""
    if b'"operator_pause"' not in record.core or record.ended:
        return None
    return decode_core(record.core).get("operator_pause")


def budget_pause_of(record: BatchRecord) -> BudgetPause | None:
    """Read a batch's pause for its budget from its record; None: it has none."""
    if b'"budget_pause"' not in record.core or record.ended:
        return None
    return decode_core(record.core).get("budget_pause")


def new_batch(
    *,
    batch_id: BatchId,
    workflow: str,
    version: str,
    submitter: WorkerId,
    definition: Definition,
    now: Micros,
) -> BatchRecord:
    """Make the record of a batch whose documents are about to be loaded."""
    core = BatchCore(
        definition=encode_definition(definition),
        at=StageCounts.empty(len(definition.stages)).stored,
        phase="idle",
        error="",
        reason="",
        sealed_by=None,
        cancelled_by=None,
        started_at=None,
        ended_at=None,
    )
    return BatchRecord(
        batch_id=batch_id,
        workflow=workflow,
        version=version,
        loader=submitter,
        run=1,
        state="pending",
        paused=False,
        counts=Counts(),
        seq=0,
        free=0,
        wake=None,
        served=0,
        core=encode_core(core),
        metadata=definition.config.metadata,
        created_at=now,
        needs=needs_of(definition),
    )
