"""The commands and their options."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from durable_batches.version import VERSION

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    name="durable-batches",
    help="Durable batches of documents.",
    no_args_is_help=True,
    add_completion=False,
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
    target: Annotated[
        str | None,
        typer.Argument(
            help="A DSN of Postgres (better given in the environment, where no list of processes shows it), "
            "or the path of a SQLite file.",
            envvar="DURABLE_BATCHES_DSN",
            show_envvar=True,
        ),
    ] = None,
    schema: Annotated[str, typer.Option(help="The schema of the tables, in Postgres.")] = "durable_batches",
    sql: Annotated[
        bool,
        typer.Option("--sql", help="Show the SQL and change nothing; without a target, all of it from the beginning."),
    ] = False,
) -> None:
    """Create the tables in a database, or bring them up to date.

    Opening a store does the same; this command is for services whose role may not change tables.
    """
    from durable_batches.cli import migrate as migration

    if sql:
        typer.echo(asyncio.run(migration.script(target, schema)), nl=False)
    elif target is None:
        raise typer.BadParameter("say which database: a DSN, or a path", param_hint="TARGET")
    else:
        typer.echo(asyncio.run(migration.migrate(target, schema)))
