"""The examples are run as their readers run them: as programs, in an empty folder, and twice."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from examples import llm_extraction, ocr

from durable_batches import BatchOrchestrator, SQLiteStore, Workflow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
PATIENCE = 60.0


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]


def run(name: str, folder: Path, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """The example's whole run."""
    ran = subprocess.run(
        command(name, *arguments),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == exit_code, ran.stderr
    return ran


def run_until(words: str, times: int, name: str, folder: Path, *arguments: str) -> str:
    """The example, killed once it has said something so many times; what it said."""
    process = subprocess.Popen(
        command(name, *arguments),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if said.count(words) == times:
                break
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
    assert process.returncode == -signal.SIGKILL, said
    return said


async def recorded(workflow: Workflow[Any, Any, Any, Any], store: Path, batch_id: str) -> int:
    """What a reader sees in the store."""
    async with BatchOrchestrator(workflow, store=SQLiteStore(store), max_in_flight=0) as reader:
        return await reader.count_checkpoints(batch_id)


def activities_run(output: str) -> int:
    (number,) = re.findall(r"^activities run(?: and recorded this time)?: (\d+)$", output, re.MULTILINE)
    return int(number)


# ---- the list -------------------------------------------------------------------------------------------------------


def test_each_example_is_in_the_list() -> None:
    listed = re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_the_quickstart_is_the_readme_s() -> None:
    (first, *_) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert (EXAMPLES / "quickstart.py").read_text("utf-8") == first


# ---- programs -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
def test_quickstart(tmp_path: Path) -> None:
    lines = run("quickstart", tmp_path).stdout.splitlines()
    assert ast.literal_eval(lines[-1]) == {"Ada": 2, "Charles": 1}
    assert "chunking: 2 of 2" in "\n".join(lines)


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
async def test_llm_extraction_goes_on_after_a_kill(tmp_path: Path) -> None:
    run_until(" done", 3, "llm_extraction", tmp_path)
    before = await recorded(llm_extraction.extract, tmp_path / "letters.db", "letters-of-ada")
    assert before >= 3

    second = run("llm_extraction", tmp_path).stdout
    assert "9 of 10 letters" in second
    assert "Ada Lovelace (also A. Lovelace, Lady Lovelace): in 5 letters" in second
    assert "Charles Babbage worked with Michael Faraday" in second
    after = await recorded(llm_extraction.extract, tmp_path / "letters.db", "letters-of-ada")
    assert before + activities_run(second) == after

    third = run("llm_extraction", tmp_path).stdout
    assert activities_run(third) == 0
    assert third.partition("letters\n")[2].splitlines()[:-1] == second.partition("letters\n")[2].splitlines()[:-1]


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
async def test_ocr_goes_on_after_a_kill(tmp_path: Path) -> None:
    run_until("cleaning, ", 4, "ocr", tmp_path)
    before = await recorded(ocr.read_page, tmp_path / "ocr.db", "scans")

    second = run("ocr", tmp_path)
    assert before + activities_run(second.stdout) == await recorded(ocr.read_page, tmp_path / "ocr.db", "scans")
    assert "100.0 %  20 pages read, 1 not" in second.stdout
    assert "page-21: " in second.stderr
    pages = [path.read_text("utf-8").rstrip("\n") for path in sorted((tmp_path / "text").iterdir())]
    assert len(pages) == 20
    assert sum(page == text for page, text in zip(pages, ocr.TEXTS * 4, strict=True)) >= 18, "it can hardly read"
    assert activities_run(run("ocr", tmp_path).stdout) == 0


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
def test_nightly_goes_on_after_a_kill(tmp_path: Path) -> None:
    first = re.findall("paid for: .*", run_until("paid for", 20, "nightly", tmp_path, "--date", "2026-01-31"))

    second = run("nightly", tmp_path, "--date", "2026-01-31", exit_code=3)
    (kept,) = re.findall(r"resuming batch 'tickets-2026-01-31' .* (\d+) recorded activities", second.stderr)
    paid = re.findall("paid for: .*", second.stderr)
    assert int(kept) >= 16
    assert int(kept) + len(paid) == 59, "what was recorded is not paid for again"
    assert len(set(first) & set(paid)) <= 4, "what was running when it was killed, at most"
    assert set(first) | set(paid) == {*first, *paid}
    assert "59 of 60 documents succeeded, 1 failed" in second.stdout
    assert re.findall(r"^(\w+) +(\d+)$", second.stdout, re.MULTILINE) == [
        ("billing", "24"),
        ("other", "12"),
        ("outage", "23"),
    ]
    report = (tmp_path / "report-2026-01-31.csv").read_text("utf-8").splitlines()
    assert len(report) == 61
    assert report[1] == "T000,billing"
    assert report[-1].startswith("T041,not sorted: ")

    third = run("nightly", tmp_path, "--date", "2026-01-31", exit_code=3)
    assert "has already ended; nothing is run" in third.stderr
    assert "paid for" not in third.stderr
    assert third.stdout == second.stdout


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
def test_custom_store(tmp_path: Path) -> None:
    first, second = (run("custom_store", tmp_path).stdout for _ in range(2))
    assert "2 of 2 documents succeeded" in first
    assert "2 of 2 documents succeeded" in second
    assert (activities_run(first), activities_run(second)) == (2, 0)


# ---- the service, over HTTP -----------------------------------------------------------------------------------------

ACME = {"X-Api-Key": "acme-key"}
GLOBEX = {"X-Api-Key": "globex-key"}


def articles(number: int) -> dict[str, object]:
    return {"documents": [{"id": f"a{one}", "text": f"rain {one}. And more of it."} for one in range(number)]}


@contextmanager
def serving(folder: Path, *, ended_by: signal.Signals = signal.SIGTERM) -> Generator[httpx.Client]:
    """A service in a process of its own, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "service.log").open("a") as log:
        process = subprocess.Popen(
            command("service", "--port", str(port)), cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log
        )
    try:
        # Not by way of a proxy that the environment may name.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
            eventually_answers(client, process)
            yield client
    finally:
        process.send_signal(ended_by)
        process.wait(PATIENCE)
    log_text = (folder / "service.log").read_text()
    assert "Exception in ASGI application" not in log_text, log_text


def eventually_answers(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, "it has ended"
        try:
            client.get("/openapi.json")
        except httpx.ConnectError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def ended(client: httpx.Client, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Its status when it has ended; waited for by following its events."""
    client.get(progress_of(path), headers=headers).raise_for_status()
    status: dict[str, Any] = client.get(path, headers=headers).raise_for_status().json()
    return status


def progress_of(path: str) -> str:
    """The address of a batch's events, which the application has that is mounted."""
    return f"/durable/batches/{path.rpartition('/')[2]}/progress"


def submitted(client: httpx.Client, path: str, body: object, headers: dict[str, str]) -> str:
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
def test_service(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        check_batches_and_tenants(client)
        check_events(client)
        check_errors(client)
        check_cancel(client)


def check_batches_and_tenants(client: httpx.Client) -> None:
    headers = {**ACME, "Idempotency-Key": "monday"}
    batch_id = submitted(client, "/summaries", articles(12), headers)
    assert submitted(client, "/summaries", articles(3), headers) == batch_id == "acme:summaries:monday"
    status = ended(client, f"/summaries/{batch_id}", ACME)
    assert (status["state"], status["percentage"], status["counts"]["succeeded"]) == ("completed", 100.0, 12)
    assert status["stages"][-1] == {"stage": "checking", "done": 12, "total": 12}

    results = client.get(f"/summaries/{batch_id}/results", headers=ACME)
    assert results.headers["content-type"] == "application/x-ndjson"
    lines = [httpx.Response(200, text=line).json() for line in results.text.splitlines()]
    assert [line["document_id"] for line in lines] == [f"a{one}" for one in range(12)]
    assert lines[0]["value"] == {"text": "rain 0.", "shortened_to": 0.304}

    other = submitted(client, "/translations", articles(1), GLOBEX)
    ended(client, f"/translations/{other}", GLOBEX)
    assert "pluie 0." in client.get(f"/translations/{other}/results", headers=GLOBEX).text
    assert [found["batch_id"] for found in client.get("/summaries", headers=ACME).json()] == [batch_id]
    assert client.get("/summaries", headers=GLOBEX).json() == []
    assert client.get("/translations?state=failed", headers=GLOBEX).json() == []
    for path in (f"/summaries/{batch_id}", f"/summaries/{batch_id}/results", progress_of(batch_id)):
        assert client.get(path, headers=GLOBEX).status_code == 404
    by_token = {"Authorization": "Bearer acme-key"}
    listed = client.get("/durable/batches", headers=by_token).json()
    assert [found["batch_id"] for found in listed["batches"]] == [batch_id]
    assert client.get("/durable/batches").status_code == 401
    assert "<!doctype html>" in client.get("/durable/").text.lower()
    assert client.get("/durable/ready").json() == {"ready": True}


def check_events(client: httpx.Client) -> None:
    path = progress_of("acme:summaries:monday")
    everything = client.get(path, headers=ACME)
    assert everything.headers["content-type"].startswith("text/event-stream")
    numbers = [int(number) for number in re.findall(r"^id: (\d+)$", everything.text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "event: batch_completed\ndata: {" in everything.text
    rest = client.get(path, headers={**ACME, "Last-Event-ID": "5"})
    assert rest.text.partition("\n\n")[2] == everything.text.partition("id: 5\n")[2].partition("\n\n")[2]


def check_errors(client: httpx.Client) -> None:
    assert client.get("/summaries", headers={"X-Api-Key": "stolen"}).status_code == 401
    unknown = client.get("/summaries/acme:summaries:tuesday", headers=ACME)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "batch-not-found")
    of_the_other = client.get("/translations/acme:summaries:monday", headers=ACME)
    assert (of_the_other.status_code, of_the_other.json()["code"]) == (404, "workflow-mismatch")
    twice = {"documents": [{"id": "a", "text": "One."}, {"id": "a", "text": "Two."}]}
    refused = client.post("/summaries", json=twice, headers=ACME)
    assert (refused.status_code, refused.json()["code"]) == (422, "duplicate-document")
    empty = submitted(client, "/summaries", {"documents": [{"id": "a", "text": " "}, *fine()]}, ACME)
    assert ended(client, f"/summaries/{empty}", ACME)["counts"]["failed"] == 1
    failed, succeeded = client.get(f"/summaries/{empty}/results", headers=ACME).text.splitlines()
    assert '"tag":"failed"' in failed
    assert "EmptyTextError" in failed
    assert '"tag":"succeeded"' in succeeded


def fine() -> list[dict[str, str]]:
    return [{"id": "b", "text": "Fine."}]


def check_cancel(client: httpx.Client) -> None:
    batch_id = submitted(client, "/summaries", articles(500), ACME)
    cancel = f"/summaries/{batch_id}/cancel"
    assert client.post(cancel, params={"reason": "a test"}, headers=ACME).json() == {"cancelled": True}
    assert client.post(cancel, headers=ACME).json() == {"cancelled": False}
    assert ended(client, f"/summaries/{batch_id}", ACME)["state"] == "cancelled"


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.docs
def test_service_goes_on_when_it_is_started_again(tmp_path: Path, ended_by: signal.Signals) -> None:
    with serving(tmp_path, ended_by=ended_by) as client:
        batch_id = submitted(client, "/summaries", articles(60), ACME)
        path = f"/summaries/{batch_id}"
        end = time.monotonic() + PATIENCE
        while client.get(path, headers=ACME).json()["counts"]["succeeded"] == 0:
            assert time.monotonic() < end
    with serving(tmp_path) as client:
        status = ended(client, path, ACME)
        assert (status["state"], status["counts"]["succeeded"]) == ("completed", 60)
        text = client.get(progress_of(path), headers=ACME).text
    assert text.count("event: document_completed") == 60
