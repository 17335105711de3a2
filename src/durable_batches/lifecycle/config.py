"""The configuration of a batch: frozen, validated at construction, recorded with the batch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, TypedDict, cast

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.budget import Budget
from durable_batches.lifecycle.policies import LONGEST_DELAY, AbortAll, ContinueOnFailure, FailurePolicy, RetryFailed
from durable_batches.options import wrong_duration

__all__ = ["RECORDED", "BatchConfig", "ConfigChanges", "changed", "changes_in", "changes_of"]

RECORDED: Final = {"recorded": True}
"""The context of validation of a configuration that was read from a store."""


def _no_number(value: object, info: ValidationInfo) -> object:
    # Recorded, and in JSON generally, it is a number of seconds.
    if isinstance(value, int | float) and info.mode == "python" and info.context != RECORDED:
        raise ValueError(wrong_duration(value))
    return value


def _in_seconds(schema: dict[str, Any]) -> None:
    # What pydantic writes of the bounds of a duration (`gt`, `le`) is none of JSON Schema's words.
    del schema["gt"], schema["le"]
    schema.update(exclusiveMinimum=0, maximum=LONGEST_DELAY.total_seconds())


Positive = Annotated[
    timedelta,
    BeforeValidator(_no_number),
    Field(gt=timedelta(0), le=LONGEST_DELAY, json_schema_extra=_in_seconds),
]


# As arguments of the class, because type checkers know them there only. The schema is built when the first
# configuration is made: importing the library stays quick.
class BatchConfig(BaseModel, frozen=True, extra="forbid", ser_json_timedelta="float", defer_build=True):
    """How a batch runs. Recorded at submission; attaching to an existing batch keeps its configuration.

    Raises:
        pydantic.ValidationError: A value is out of range or of a wrong type (a number in place of a `timedelta`, for
            example), or a name is unknown.
    """

    concurrency: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 8
    """Maximum number of documents in flight, over all workers."""

    failure_policy: Annotated[ContinueOnFailure | AbortAll | RetryFailed, Field(discriminator="tag")] = Field(
        default_factory=ContinueOnFailure
    )
    """The policy for failed documents."""

    document_timeout: Positive | None = None
    """The maximum duration of one attempt of a document; then the attempt has failed. While all that goes on of the
    document are calls that wait for permits of their limiters, the time stands still."""

    deadline: Positive | None = None
    """The time from submission after which an unfinished batch is FAILED."""

    max_crashes: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 3
    """A document whose process crashed this often while it ran, with nothing recorded in between and the last time with
    no other document running, fails (`CrashLoopError`). The first crash is never held against it."""

    quota_patience: Positive | None = timedelta(days=1)
    """The time for which the batch is paused because a provider refuses its calls (quota spent, account empty); if no
    call has succeeded by then, it is FAILED. None: no limit."""

    budget: Budget | None = None
    """How much its calls may spend, as far as they say so (`ActivityContext.spend`). None: no limit."""

    metadata: dict[str, str] = Field(default_factory=dict)
    """Labels of your own, for `list_batches`; not interpreted."""


class ConfigChanges(TypedDict, total=False):
    """The options of a batch that can be changed while it runs; see `BatchConfig`."""

    concurrency: int
    failure_policy: FailurePolicy
    document_timeout: timedelta | None
    deadline: timedelta | None
    budget: Budget | None


def changes_of(changes: ConfigChanges) -> dict[str, Any]:
    """Check new values as `BatchConfig` does, and return them as JSON has them.

    Raises:
        ConfigurationError: There is none, or an option cannot be changed.
        pydantic.ValidationError: A value is out of range or of a wrong type.
    """
    names = ConfigChanges.__annotations__
    fixed = sorted(changes.keys() - names.keys())
    if fixed or not changes:
        what = f"{fixed[0]!r} cannot be changed" if fixed else "there is nothing to change"
        raise ConfigurationError(f"{what}; the options that can be changed are {', '.join(names)}")
    return BatchConfig(**changes).model_dump(mode="json", include=set(changes))


def changes_in(text: bytes | str) -> ConfigChanges:
    """Parse new values from a JSON object, in which durations are numbers of seconds.

    Raises:
        ConfigurationError: An option of a policy is out of range.
        pydantic.ValidationError: It is no JSON object, or a value is out of range or of a wrong type, or a name is
            unknown.
    """
    config = BatchConfig.model_validate_json(text)
    return cast("ConfigChanges", {name: getattr(config, name) for name in config.model_fields_set})


def changed(config: BatchConfig, changes: Mapping[str, Any]) -> BatchConfig:
    """Return the configuration with new values, which are as JSON has them."""
    return BatchConfig.model_validate({**config.model_dump(mode="json"), **changes}, context=RECORDED)
