"""The commands and their options."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from durable_batches.cli.options import (
    BatchArgument,
    BatchesArgument,
    JsonOption,
    LabelOption,
    PolicyOption,
    Running,
    SchemaOption,
    Status,
    Stdin,
    StoreOption,
    WorkflowOption,
    YesOption,
    duration_of,
    given_of,
    label_of,
    moment_of,
    seconds_of,
)
from durable_batches.version import VERSION

if TYPE_CHECKING:
    from durable_batches.cli.control import Verb
    from durable_batches.reading.client import BatchClient

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    name="durable-batches",
    help="Durable batches of documents.",
    no_args_is_help=True,
    # Plain: errors quote ids, which may look like markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def durable_batches(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Durable batches of documents: nothing that was paid for is paid for twice."""


# ---- reading -------------------------------------------------------------------------------------------------------


@app.command("list")
def list_command(
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help="Only batches in this state (or stage); may be given several times."),
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only batches that have not ended.")] = False,
    label: LabelOption = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Only batches created since: 30m, 2h or 7d (ago), or an ISO 8601 time."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most; 0: all.", min=0)] = 50,
    as_json: JsonOption = False,
) -> None:
    """List batches, newest first."""
    from durable_batches.cli.batches import Filters, list_batches
    from durable_batches.cli.session import run_command

    filters = Filters(
        workflow=workflow,
        states=state or (),
        unfinished=unfinished,
        labels=dict(map(label_of, label or ())),
        since=None if since is None else moment_of(since),
    )
    run_command(store, schema, lambda client: list_batches(client, filters, limit=limit, as_json=as_json))


@app.command()
def show(
    batches: Annotated[list[str], typer.Argument(metavar="BATCH...", help="The ids of one or more batches.")],
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    as_json: JsonOption = False,
) -> None:
    """Show a batch: its state, counts, stages, times and labels."""
    from durable_batches.cli.batches import show_batches
    from durable_batches.cli.session import run_command

    run_command(store, schema, lambda client: show_batches(client, batches, as_json=as_json))


@app.command()
def watch(
    batches: BatchesArgument = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    label: LabelOption = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks, at least.", min=0.05, max=3600)] = 0.25,
    as_json: JsonOption = False,
) -> None:
    """Follow batches to their ends: bars on a terminal, a line now and then elsewhere.

    Without a batch, all are followed that have not ended by now.

    The exit code tells how the batch ended: 0, or 3 (documents failed), 4 (the batch failed), 5 (cancelled). Of several
    batches, it is that of the worst end: failed, cancelled, documents failed.
    """
    from durable_batches.cli.batches import Filters
    from durable_batches.cli.session import run_command
    from durable_batches.cli.watch import unfinished_batches, watch_batch, watch_batches

    if batches and (workflow or label):
        raise typer.BadParameter("give batches, or --workflow and --label to choose among all that have not ended")
    filters = Filters(workflow=workflow, unfinished=True, labels=dict(map(label_of, label or ())))
    seconds = timedelta(seconds=interval)

    async def watch_them(client: BatchClient) -> int:
        if batches is not None and len(batches) == 1:
            return await watch_batch(client, batches[0], interval=seconds, as_json=as_json)
        named = batches or await unfinished_batches(client, filters)
        return await watch_batches(client, named, interval=seconds, as_json=as_json)

    run_command(store, schema, watch_them)


@app.command()
def documents(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    status: Annotated[
        Status | None,
        typer.Option(help="Only documents with this status."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="FP", help="Only failed documents of this group of `errors`.")
    ] = None,
    payloads: Annotated[bool, typer.Option("--payloads", help="Also the documents themselves, and results.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most; 0: all.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a batch, in the order of their submission."""
    from durable_batches.cli.documents import show_documents
    from durable_batches.cli.session import run_command

    if fingerprint is not None and status not in (None, Status.FAILED):
        raise typer.BadParameter("only failed documents have a fingerprint", param_hint="--status")
    run_command(
        store,
        schema,
        lambda client: show_documents(
            client,
            batch,
            status=None if status is None else status.value,
            fingerprint=fingerprint,
            payloads=payloads,
            limit=limit,
            as_json=as_json,
        ),
    )


@app.command()
def events(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    after: Annotated[int, typer.Option(metavar="N", help="Only events after the one of this number.", min=0)] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Also the events to come, up to the batch's last one.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most; 0: all.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the events of a batch, in order."""
    from durable_batches.cli.events import show_events
    from durable_batches.cli.session import run_command

    run_command(
        store,
        schema,
        lambda client: show_events(client, batch, after=after, follow=follow, limit=limit, as_json=as_json),
    )


@app.command()
def errors(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    examples: Annotated[int, typer.Option(metavar="N", help="How many documents of each group to name.", min=0)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Group the failed documents of a batch by their errors, the largest group first."""
    from durable_batches.cli.failures import show_errors
    from durable_batches.cli.session import run_command

    run_command(store, schema, lambda client: show_errors(client, batch, examples=examples, as_json=as_json))


@app.command()
def spent(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    as_json: JsonOption = False,
) -> None:
    """Show what the calls of a batch have spent: in all, by stage, activity and model."""
    from durable_batches.cli.session import run_command
    from durable_batches.cli.spending import show_spending

    run_command(store, schema, lambda client: show_spending(client, batch, as_json=as_json))


@app.command()
def why(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    as_json: JsonOption = False,
) -> None:
    """Explain why a batch is where it is: what runs, what waits for what, which workers there are."""
    from durable_batches.cli.session import run_command
    from durable_batches.cli.why import explain_batch

    run_command(store, schema, lambda client: explain_batch(client, batch, as_json=as_json))


@app.command()
def export(
    batch: BatchArgument,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; it appears when it is complete.", dir_okay=False),
    ] = None,
) -> None:
    """Print the results of a batch's documents as JSON Lines, in the order of the submission."""
    from durable_batches.cli.documents import export_results
    from durable_batches.cli.session import run_command

    run_command(store, schema, lambda client: export_results(client, batch, out=out))


# ---- control -------------------------------------------------------------------------------------------------------


def _named(
    verb: Verb,
    batches: Sequence[str] | None,
    store: str | None,
    schema: str,
    workflow: str | None,
    label: Sequence[str] | None,
    *,
    yes: bool,
) -> Sequence[str]:
    """Return the batches that are given, or those that a workflow and labels choose, which are confirmed."""
    from durable_batches.cli.batches import Filters
    from durable_batches.cli.control import Choice
    from durable_batches.cli.session import perform

    if bool(batches) == bool(workflow or label):
        raise typer.BadParameter("give batches, or choose them by --workflow and --label")
    if batches:
        return batches
    choice = Choice(Filters(workflow=workflow, unfinished=True, labels=dict(map(label_of, label or ()))), verb)
    code = perform(store, schema, choice.look)
    if code:
        raise typer.Exit(code)
    if not yes:
        choice.confirm()
    # These, and none that came meanwhile.
    return choice.batch_ids


@app.command()
def cancel(
    batches: BatchesArgument = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    label: LabelOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept with the batch.")] = "",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cancel batches: no document of them is started any more, and what runs is stopped.

    With --workflow or --label instead of batches, all are cancelled that these choose and that have not ended. They are
    named, and it is asked before (--yes: it is not).
    """
    from durable_batches.cli.control import Verb, cancel_batches
    from durable_batches.cli.session import run_command

    named = _named(Verb("cancel", "cancelled"), batches, store, schema, workflow, label, yes=yes)
    run_command(
        store, schema, lambda client: cancel_batches(client, named, reason=reason, as_json=as_json), reads=False
    )


@app.command()
def pause(
    batches: BatchesArgument = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    label: LabelOption = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is shown until the batch is resumed.")] = "",
    running: Annotated[
        Running, typer.Option(help="What finishes of that which runs: the calls of activities, or whole documents.")
    ] = Running.CALLS,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pause batches: no document of them is started until they are resumed. Their deadlines run on.

    With --workflow or --label instead of batches, all are paused that these choose and that have not ended.
    """
    from durable_batches.cli.control import Verb, pause_batches
    from durable_batches.cli.session import run_command

    named = _named(Verb("pause", "paused"), batches, store, schema, workflow, label, yes=yes)
    run_command(
        store,
        schema,
        lambda client: pause_batches(client, named, note=note, running=running.value, as_json=as_json),
        reads=False,
    )


@app.command()
def resume(
    batches: BatchesArgument = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    label: LabelOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Resume paused batches. A provider that refuses their calls for its account is asked again at once.

    With --workflow or --label instead of batches, all are resumed that these choose and that have not ended.
    """
    from durable_batches.cli.control import Verb, resume_batches
    from durable_batches.cli.session import run_command

    named = _named(Verb("resume", "resumed"), batches, store, schema, workflow, label, yes=yes)
    run_command(store, schema, lambda client: resume_batches(client, named, as_json=as_json), reads=False)


@app.command()
def update(
    batches: BatchesArgument = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    workflow: WorkflowOption = None,
    label: LabelOption = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Documents at once, over all workers.", min=1, max=100_000)
    ] = None,
    policy: PolicyOption = None,
    document_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Of an attempt of a document: 30s, 5m, 2h, 7d, or none.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Of the batch, from its submission: 30m, 2h, 7d, or none.")
    ] = None,
    budget_cost: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="The money that its calls may spend in all, or none.")
    ] = None,
    budget_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="The tokens that its calls may use in all, or none.")
    ] = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change options of batches while they run. What is not given stays as it is.

    Documents that run are not stopped. A new policy judges the failures that are there at once. A budget has to exceed
    what is spent, and replaces the one that there was; a batch that it paused goes on. With --workflow or
    --label instead of batches, all are changed that these choose and that have not ended.
    """
    from durable_batches.cli.budgets import budget_of
    from durable_batches.cli.control import Verb, update_batches
    from durable_batches.cli.policies import policy_of
    from durable_batches.cli.session import run_command
    from durable_batches.lifecycle.config import ConfigChanges

    changes = ConfigChanges()
    if concurrency is not None:
        changes["concurrency"] = concurrency
    if policy is not None:
        changes["failure_policy"] = policy_of(policy)
    if document_timeout is not None:
        changes["document_timeout"] = duration_of(document_timeout, "--document-timeout")
    if deadline is not None:
        changes["deadline"] = duration_of(deadline, "--deadline")
    if budget_cost is not None or budget_tokens is not None:
        changes["budget"] = budget_of(budget_cost, budget_tokens)
    if not changes:
        raise typer.BadParameter(
            "give what is to be changed: --concurrency, --policy, --document-timeout, --deadline, --budget-cost, "
            "--budget-tokens"
        )
    named = _named(Verb("update", "updated"), batches, store, schema, workflow, label, yes=yes)
    run_command(store, schema, lambda client: update_batches(client, named, changes, as_json=as_json), reads=False)


# ---- running -------------------------------------------------------------------------------------------------------


@app.command()
def run(
    target: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow, as module:name.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES]...",
            help="Files, folders and patterns: texts, or documents as JSON (.json) and JSON Lines (.jsonl). -: the "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    stdin: Annotated[
        Stdin, typer.Option(help="What the standard input has: JSON Lines, a text in each line, or one text.")
    ] = Stdin.JSONL,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    batch_id: Annotated[
        str | None, typer.Option("--batch-id", metavar="ID", help="The id of the batch; by default a new one.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the results as JSON Lines; -: on stdout."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Documents at once; 8 by default.", min=1, max=100_000)
    ] = None,
    policy: PolicyOption = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A label of the batch; may be given several times."),
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long activities may run on after a signal.", min=0)
    ] = 30,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show the progress on stderr.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the batch as JSON when it has ended.")] = False,
) -> None:
    """Run a workflow over files or the standard input, as a batch: to its end, or to a signal.

    Run again over the same, it resumes the batch.

    The exit code tells how the batch ended: 0, or 3 (documents failed), 4 (the batch failed), 5 (cancelled); 130 or 143
    is for a signal.
    """
    from durable_batches.cli.run_files import RunOptions, run_files

    options = RunOptions(
        batch_id=batch_id,
        concurrency=concurrency,
        policy=policy,
        labels=dict(map(label_of, label or ())),
        stdin=stdin.value,
        output=output,
        drain=seconds_of(drain),
        progress=progress,
        as_json=as_json,
    )
    raise typer.Exit(run_files(target, files or (), store, schema, options))


@app.command()
def worker(
    context: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET...", help="Orchestrators, workers or workflows, each as module:name."),
    ],
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            "--max-in-flight", metavar="N", help="Of workflows: documents in flight at once; 100 by default.", min=1
        ),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Of workflows: how long activities may run on after a signal; 30 by default.", min=0
        ),
    ] = None,
) -> None:
    """Run batches until Ctrl-C or SIGTERM; then running activities finish first.

    An orchestrator or a worker of a module runs as it was created. For workflows, a worker is created with the options
    here. The exit code is 0 after a drain, and 130 or 143 where a second signal ended it.
    """
    from durable_batches.cli.worker import WorkerOptions, run_workers

    options = WorkerOptions(
        store=store,
        schema=schema,
        max_in_flight=max_in_flight,
        drain=None if drain is None else seconds_of(drain),
        given=given_of(context, "store", "schema", "max_in_flight", "drain"),
    )
    raise typer.Exit(run_workers(targets, options))


# ---- more ----------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    context: typer.Context,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0: any that is free.", min=0, max=65_535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DURABLE_BATCHES_TOKEN", help="What requests have to bear; by default a new one, which is printed."
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse commands.")] = False,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="An application of your own, with its own store and rights, instead of a store."
        ),
    ] = None,
) -> None:
    """Serve a page that shows the batches, and the API that it uses, until Ctrl-C.

    With --app, an application of a module is served, as create_app() of durable_batches.web makes it, or any other.
    """
    from durable_batches.cli.serve import serve_app, serve_store

    if app is not None:
        given = given_of(context, "store", "schema", "token", "read_only")
        if given:
            raise typer.BadParameter(
                f"the application has its own store and rights; leave out {', '.join(given)}", param_hint="--app"
            )
        raise typer.Exit(serve_app(app, host=host, port=port))
    raise typer.Exit(serve_store(store, schema, host=host, port=port, token=token, read_only=read_only))


@app.command()
def demo(
    path: Annotated[
        Path | None,
        typer.Option(
            help="A folder of text files (or one) to read, not the installed packages.",
            exists=True,
        ),
    ] = None,
    db: Annotated[Path, typer.Option(help="The database that keeps the batch.", dir_okay=False)] = Path("demo.db"),
    out: Annotated[Path, typer.Option(help="The file to write the graph to.", dir_okay=False)] = Path("graph.json"),
    concurrency: Annotated[int, typer.Option(help="Documents at once.", min=1, max=1000)] = 4,
    pace: Annotated[
        float,
        typer.Option(
            help="Seconds that each step waits before it reads, as if it called a service; 0: full speed.",
            min=0,
            max=60,
        ),
    ] = 0.2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new batch, whatever the database has.")] = False,
) -> None:
    """Extract a knowledge graph from the metadata and READMEs of the installed packages.

    Stop it in any way, with Ctrl-C or kill -9, and run it again: it resumes the batch.
    """
    # Only this command needs the dependencies of the extraction.
    from durable_batches.cli.demo.demo import Demo

    code = asyncio.run(Demo(path=path, db=db, out=out, concurrency=concurrency, pace=pace, fresh=fresh).run())
    raise typer.Exit(code)


@app.command()
def migrate(
    target: Annotated[str | None, typer.Argument(metavar="[STORE]", help="As --store.", show_default=False)] = None,
    store: StoreOption = None,
    schema: SchemaOption = "durable_batches",
    sql: Annotated[
        bool,
        typer.Option("--sql", help="Show the SQL and change nothing; without a store, all of it from the beginning."),
    ] = False,
) -> None:
    """Create the tables in a database, or bring them up to date.

    Opening a store does the same; this command is for services whose role may not change tables.
    """
    from durable_batches.cli import migrate as migration

    target = target or store
    if sql:
        typer.echo(asyncio.run(migration.script(target, schema)), nl=False)
    else:
        typer.echo(asyncio.run(migration.migrate(target, schema)))
