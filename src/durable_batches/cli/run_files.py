"""The command `run`: a batch of files, run in this process to its end or to a signal."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from durable_batches.cli.as_json import batch_json
from durable_batches.cli.documents import export_results
from durable_batches.cli.exits import CommandError, Exit, exit_code_of
from durable_batches.cli.inputs import Inputs, StdinFormat
from durable_batches.cli.named import object_at
from durable_batches.cli.output import RawJson, flush, print_json
from durable_batches.cli.policies import policy_of
from durable_batches.cli.target import is_dsn, is_object, store_at
from durable_batches.errors import DuplicateDocumentError
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.reading.client import BatchClient
from durable_batches.runtime.results import BatchResult
from durable_batches.runtime.workflow import Workflow
from durable_batches.script.runner import Script, knows_filters
from durable_batches.script.signals import StopSignals
from durable_batches.stores.protocol import Store
from durable_batches.worker.worker import Worker

__all__ = ["RunOptions", "run_files"]

_ON_STDOUT: Final = "-"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `run`.

    Attributes:
        batch_id: The id of the batch; None: one that is generated.
        concurrency: Documents at once; None: as `BatchConfig` has it.
        policy: What a failed document means; see `policy_of`.
        labels: The labels of a new batch.
        stdin: What the standard input holds, where it is named.
        output: The file to write the results to; "-": stdout; None: nowhere.
        drain: How long running activities may go on after a signal.
        progress: Whether to show the progress on stderr.
        as_json: Whether to print the batch, and its resolution, when it has ended.
    """

    batch_id: str | None
    concurrency: int | None
    policy: str | None
    labels: dict[str, str]
    stdin: StdinFormat
    output: str | None
    drain: timedelta
    progress: bool
    as_json: bool


def run_files(target: str, files: Sequence[str], store: str | None, schema: str, options: RunOptions) -> int:
    """Run a batch of files; return the exit code.

    Args:
        target: The workflow, as `module:name`.
        files: Files, folders and patterns; "-": the standard input.
        store: The store; see `store_at`. A file that is not there is created.
        schema: The schema of the tables, in Postgres.
        options: The others.

    Raises:
        CommandError: A workflow, a store or documents are not what they are said to be.
    """
    workflow = _workflow_at(target)
    if not files and options.batch_id is None:
        raise CommandError(
            "name files or folders to run, or - for the standard input; or an unfinished batch, with --batch-id",
            Exit.USAGE,
        )
    config = _config(options)
    opened = store_at(store, schema)
    documents = Inputs(workflow, files, options.stdin)
    script = Script(
        workflow,
        documents,
        worker=Worker(opened, drain=options.drain, batches="mine" if knows_filters(opened) else "all"),
        # A DSN has a password.
        where="the store" if store is None or is_dsn(store) or is_object(store) else store,
        batch_id=options.batch_id,
        config=config,
        document_id=None,
        drain=options.drain,
        progress=options.progress,
        option=_option,
        named=documents.named,
    )
    with StopSignals() as signals:
        return asyncio.run(_run(script, workflow, opened, options, signals))


async def _run(
    script: Script[Any, Any, Any, Any],
    workflow: Workflow[Any, Any, Any, Any],
    store: Store,
    options: RunOptions,
    signals: StopSignals,
) -> int:
    try:
        result = await script.run(signals)
    except DuplicateDocumentError as error:
        # What the error advises is for Python.
        raise CommandError(
            f"two documents have the id {error.document_id!r}; nothing was submitted. Give each an id of its own",
            exit_code_of(error),
        ) from error
    if result is None:
        return signals.exit_code
    writing = asyncio.create_task(_write(result, workflow, store, options))
    # Signals that have only ended the drain are not meant.
    await signals.wait_for(writing, after=signals.count)
    if writing.cancelled():
        return signals.exit_code
    writing.result()
    if signals.count:
        # They have only ended the drain, or came too late.
        signals.exits(result.exit_code)
    return result.exit_code


async def _write(
    result: BatchResult[Any], workflow: Workflow[Any, Any, Any, Any], store: Store, options: RunOptions
) -> None:
    """Write what was asked for of a batch that has ended."""
    if options.output is None and not options.as_json:
        return
    async with BatchClient(store) as client:
        if options.output is not None:
            out = None if options.output == _ON_STDOUT else Path(options.output)
            await export_results(client, result.batch_id, out=out)
        if options.as_json:
            shown = batch_json(await client.snapshot(result.batch_id))
            if result.resolution is not None:
                shown["resolution"] = RawJson(workflow.resolution_codec.encode(result.resolution).decode())
            print_json(shown)
    flush()


# ---- options ---------------------------------------------------------------------------------------------------------


def _option(name: str, value: str | None) -> str:
    """Write an option of `run_batch` as one of the command."""
    option = f"--{name.replace('_', '-')}"
    return option if value is None else f"{option} {shlex.quote(value)}"


def _workflow_at(target: str) -> Workflow[Any, Any, Any, Any]:
    found = object_at(target, "workflow")
    if not isinstance(found, Workflow):
        raise CommandError(
            f"{target} is no workflow, but of type {type(found).__name__}; decorate it with @workflow(machine)",
            Exit.USAGE,
        )
    found.check()
    return found  # pyright: ignore[reportUnknownVariableType]  (its parameters cannot be known)


def _config(options: RunOptions) -> BatchConfig:
    given: dict[str, object] = {"metadata": options.labels}
    if options.concurrency is not None:
        given["concurrency"] = options.concurrency
    if options.policy is not None:
        given["failure_policy"] = policy_of(options.policy)
    try:
        return BatchConfig.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CommandError(f"{problem['loc'][0]}: {problem['msg']}", Exit.USAGE) from error
