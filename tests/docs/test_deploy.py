"""The page on deploying: its manifests can be parsed, and leave a process the time that its worker may take."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

PAGE: Final = (Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
DRAIN: Final = 60
"""Seconds, as the page's worker has them."""
UNWINDING: Final = 15
"""Seconds after the drain that a worker takes at most: for code that does not end, or a store that does not answer."""


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert isinstance(found, str)
    return found


def test_its_worker_drains_as_long_as_is_reckoned_with() -> None:
    assert {int(seconds) for seconds in re.findall(r"drain=timedelta\(seconds=(\d+)\)", PAGE)} == {DRAIN}


def test_a_pod_has_time_to_drain() -> None:
    manifest: Any = yaml.safe_load(block("yaml"))
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= sleep + DRAIN + UNWINDING
    assert manifest["spec"]["selector"]["matchLabels"] == manifest["spec"]["template"]["metadata"]["labels"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == container["ports"][0]["containerPort"]
        assert asked["path"] == f"/durable/{'health' if probe == 'livenessProbe' else 'ready'}"


def test_a_unit_has_time_to_drain() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    unit.read_string(block("ini"))
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) >= DRAIN + UNWINDING
    assert service["KillSignal"] == "SIGTERM"
    assert service["SuccessExitStatus"] == "143"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"path: (/durable/\w+)", PAGE))))
def test_the_probes_are_routes(path: str) -> None:
    from durable_batches.web import openapi

    assert path.removeprefix("/durable") in openapi()["paths"]
