from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.properties import modest

from durable_batches import AbortAll, BatchConfig, BatchId, ContinueOnFailure, FailurePolicy, RetryFailed
from durable_batches.lifecycle.batch_core import Definition, definition_of, new_batch
from durable_batches.lifecycle.config import RECORDED
from durable_batches.lifecycle.records import WorkerId

LONGEST = timedelta(days=3650)


@pytest.mark.parametrize(
    "values",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": 100_001},
        {"concurrency": 1.5},
        {"concurrency": None},
        {"document_timeout": timedelta(0)},
        {"document_timeout": -timedelta(seconds=1)},
        {"document_timeout": LONGEST + timedelta(microseconds=1)},
        {"deadline": timedelta(0)},
        {"deadline": timedelta.max},
        {"max_crashes": 0},
        {"max_crashes": 1_000_001},
        {"failure_policy": None},
        {"failure_policy": "abort-all"},
        {"failure_policy": {"tag": "give-up"}},
        {"metadata": {"count": 1}},
        {"metadata": {1: "one"}},
        {"conurrency": 3},
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BatchConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"concurrency": 1, "max_crashes": 1},
        {"concurrency": 100_000, "max_crashes": 1_000_000},
        {"document_timeout": timedelta(microseconds=1), "deadline": LONGEST},
    ],
    ids=str,
)
def test_the_bounds_themselves_are_allowed(values: dict[str, Any]) -> None:
    config = BatchConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


def test_what_is_not_said_is_what_the_documentation_says() -> None:
    assert BatchConfig() == BatchConfig(
        concurrency=8,
        failure_policy=ContinueOnFailure(),
        document_timeout=None,
        deadline=None,
        max_crashes=3,
        metadata={},
    )


@pytest.mark.parametrize("seconds", [30, 1.5, True])
@pytest.mark.parametrize("name", ["document_timeout", "deadline"])
def test_a_number_is_a_duration_only_where_it_was_recorded(name: str, seconds: float) -> None:
    with pytest.raises(ValidationError, match="must be a timedelta, not a"):
        BatchConfig.model_validate({name: seconds})
    with pytest.raises(ValidationError, match="must be a timedelta, not a"):
        BatchConfig.model_validate({name: seconds}, context={})
    if seconds is not True:
        for config in (
            BatchConfig.model_validate({name: seconds}, context=RECORDED),
            BatchConfig.model_validate_json(f'{{"{name}": {seconds}}}'),
        ):
            assert getattr(config, name) == timedelta(seconds=seconds)


def test_it_is_frozen() -> None:
    config: Any = BatchConfig()
    with pytest.raises(ValidationError):
        config.concurrency = 9
    assert config.concurrency == 8


simple = st.builds(AbortAll) | st.builds(
    ContinueOnFailure, max_failures=st.none() | st.integers(0, 2**40), max_failure_ratio=st.none() | st.floats(0, 1)
)
retrying = st.builds(
    RetryFailed, max_attempts=st.integers(1, 2**40), backoff=st.timedeltas(timedelta(0), LONGEST), then=simple
)
policies: st.SearchStrategy[FailurePolicy] = simple | retrying
durations = st.none() | st.timedeltas(timedelta(microseconds=1), LONGEST)
configs = st.builds(
    BatchConfig,
    concurrency=st.integers(1, 100_000),
    failure_policy=policies,
    document_timeout=durations,
    deadline=durations,
    max_crashes=st.integers(1, 1_000_000),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(config=configs, stages=st.lists(st.text(min_size=1), min_size=1, max_size=12), resolver=st.booleans())
@modest(200)
def test_it_is_recorded_exactly(config: BatchConfig, stages: list[str], resolver: bool) -> None:
    definition = Definition(tuple(stages), resolver, config)
    record = new_batch(
        batch_id=BatchId("batch"), workflow="w", version="1", submitter=WorkerId("l"), definition=definition, now=1
    )
    assert definition_of(record) == definition
    assert record.metadata == config.metadata
