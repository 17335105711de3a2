"""The documented metrics, a scrape of a running batch, and the queries of the Grafana dashboard agree."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import promql_parser as promql
import pytest
import pytest_asyncio
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.support import NO_DRAIN, ONCE, STAGES, Thinking, within

from durable_batches import BatchOrchestrator, MemoryStore, Worker, durable_activity, workflow
from durable_batches.flow import CentralRateLimiter
from durable_batches.telemetry import OpenTelemetry

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = (DOCS / "how-to" / "trace-and-measure.md").read_text(encoding="utf-8")
DASHBOARD: Final[dict[str, Any]] = json.loads((DOCS / "assets" / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS: Final[Mapping[str, Sequence[str]]] = {
    panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]
}

OF_THE_SCRAPER: Final = {"instance", "job"}
"""Labels that Prometheus itself adds."""

OF_FAILURES_ONLY: Final = {"durable_batches_commit_duration_seconds_count"}
"""Where no sample has an error, as no commit has failed."""


class Scrape(NamedTuple):
    samples: Mapping[str, Sequence[Mapping[str, str]]]
    """The labels of every sample, by its name."""
    metrics: MetricsData
    """The same as the SDK has them."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrape() -> Scrape:
    """The metrics of a worker with batches that have ended, with and without failures, and one that runs."""
    began, gate = asyncio.Event(), asyncio.Event()

    @durable_activity(stage=Thinking, retry=ONCE, limiter=CentralRateLimiter(name="provider"))
    async def think(text: str) -> str:
        if text == "bad":
            raise ValueError
        if text == "slow":
            began.set()
            await gate.wait()
        return text

    @workflow(STAGES, name="thoughts")
    async def thoughts(text: str) -> str:
        return await think(text)

    registry, memory = CollectorRegistry(), InMemoryMetricReader()
    provider = MeterProvider([memory, PrometheusMetricReader(registry=registry)])
    worker = Worker(
        MemoryStore(),
        drain=NO_DRAIN,
        telemetry=OpenTelemetry(meter_provider=provider),
        store_gauges=timedelta(milliseconds=1),
        executors={"pool": ThreadPoolExecutor(1)},
    )
    async with BatchOrchestrator(thoughts, worker=worker) as batches:
        await batches.run(["good", "bad"])
        await batches.submit(["slow"])
        await within(began.wait())
        with worker.signals.watch.read.listen() as reading:
            await reading.next()
            await reading.next()
        text = generate_latest(registry).decode()
        data = memory.get_metrics_data()
        gate.set()
    assert data is not None
    samples: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    return Scrape(samples, data)


def parsed(query: str) -> promql.Expr:
    """A query, as Grafana sends it."""
    return promql.parse(query.replace("$workflow", ".*").replace("$__rate_interval", "5m"))


def parts(node: object) -> Iterator[object]:
    """A query's parts, each before its own."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (part := getattr(node, name, None)) is not None:
            yield from parts(part)
    for part in getattr(node, "args", ()):
        yield from parts(part)


def chooses(matcher: promql.Matcher, labels: Mapping[str, str]) -> bool:
    """Whether a matcher lets a sample pass; a label that is not there is empty."""
    value = labels.get(matcher.name, "")
    fits = {
        "=": value == matcher.value,
        "!=": value != matcher.value,
        "=~": re.fullmatch(matcher.value, value) is not None,
        "!~": re.fullmatch(matcher.value, value) is None,
    }
    return fits[operator_of(matcher)]


def operator_of(matcher: promql.Matcher) -> Literal["=", "!=", "=~", "!~"]:
    operators: dict[str, Literal["=", "!=", "=~", "!~"]] = {
        "Equal": "=",
        "NotEqual": "!=",
        "Re": "=~",
        "NotRe": "!~",
    }
    return operators[str(matcher.op).rpartition(".")[2]]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("title", "queries"), PANELS.items(), ids=list(PANELS))
async def test_the_queries_of_a_panel_find_what_is_exported(title: str, queries: Sequence[str], scrape: Scrape) -> None:
    for query in queries:
        labels: set[str] = set()
        for part in parts(parsed(query)):
            if isinstance(part, promql.VectorSelector):
                assert part.name is not None
                assert part.name in scrape.samples, query
                matchers = part.matchers.matchers
                if part.name not in OF_FAILURES_ONLY:
                    found = [each for each in scrape.samples[part.name] if all(chooses(m, each) for m in matchers)]
                    assert found, query
                    labels.update(*found)
        for part in parts(parsed(query)):
            if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
                assert set(part.modifier.labels) <= labels | OF_THE_SCRAPER, query


@pytest.mark.asyncio(loop_scope="module")
async def test_the_workflows_to_choose_from_are_exported(scrape: Scrape) -> None:
    (query,) = (each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
    assert found is not None
    name, label = found.groups()
    assert {sample.get(label) for sample in scrape.samples[name]} == {"thoughts"}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_table_has_every_metric_with_its_unit_and_its_attributes(scrape: Scrape) -> None:
    (scope,) = [scope for resource in scrape.metrics.resource_metrics for scope in resource.scope_metrics]
    exported = {
        metric.name: (
            metric.unit if metric.unit == "s" else "",
            {name for point in metric.data.data_points for name in point.attributes or {}},
        )
        for metric in scope.metrics
    }
    rows = re.findall(r"^\| `(durable_batches\.[\w.]+)` \| ([^|]+) \|([^|]*)\|", PAGE, re.MULTILINE)
    documented = {
        name: ("s" if kind.endswith(", s") else "", {
            attribute if attribute == "error.type" else f"durable_batches.{attribute}"
            for attribute in re.findall(r"`([\w.]+)`", attributes)
        })
        for name, kind, attributes in rows
    }  # fmt: skip
    # No commit has failed.
    documented["durable_batches.commit.duration"][1].discard("error.type")
    assert documented == exported
