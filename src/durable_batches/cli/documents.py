"""The commands `documents` and `export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import aclosing, suppress
from pathlib import Path

from durable_batches.cli.as_json import document_json, result_json
from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.output import error_text, first, json_of, moment, print_json, print_table
from durable_batches.errors import shortened
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.lifecycle.states import ENDED_TAGS
from durable_batches.reading.client import BatchClient
from durable_batches.reading.documents import RawDocument
from durable_batches.terminal.lines import print_line

__all__ = ["export_results", "show_documents"]


async def show_documents(
    client: BatchClient,
    batch_id: str,
    *,
    status: ExecutionStatus | None,
    fingerprint: str | None,
    payloads: bool,
    limit: int,
    as_json: bool,
) -> int:
    """Print the documents of a batch, in the order of their submission."""
    found = client.documents(batch_id, status=status, fingerprint=fingerprint, payloads=payloads)
    async with aclosing(found) as documents:
        shown = first(documents, limit)
        if as_json:
            async for document in shown:
                print_json(document_json(document, payloads=payloads))
        else:
            columns = ["DOCUMENT", "STATUS", "STAGE", "ATTEMPTS", "UPDATED", *(["INPUT", "RESULT"] if payloads else [])]
            rows = (_document_row(document, payloads=payloads) async for document in shown)
            if not await print_table([*columns, "DETAILS"], rows):
                print_line("there are no such documents")
    return Exit.DONE


def _document_row(document: RawDocument, *, payloads: bool) -> Sequence[str]:
    return [
        document.document_id,
        document.status,
        document.stage or "",
        str(document.attempts),
        moment(document.updated_at),
        *([shortened(document.document or "", 48), shortened(document.result or "", 48)] if payloads else []),
        "; ".join(_details(document)),
    ]


def _details(document: RawDocument) -> list[str]:
    details: list[str] = []
    if document.worker is not None:
        details.append(f"on worker {document.worker}")
    if document.activity is not None:
        since = f" since {moment(document.activity_since)}" if document.activity_since else ""
        details.append(f"runs {document.activity}{since}")
    if document.due is not None:
        details.append(f"again at {moment(document.due)}")
    if document.failure is not None:
        details.append(error_text(document.failure.error_type, document.failure.error))
    return details


# ---- export --------------------------------------------------------------------------------------------------------


async def export_results(client: BatchClient, batch_id: str, *, out: Path | None) -> int:
    """Print the results of a batch as JSON Lines, in the order of the submission; or write them to a file."""
    if out is None:
        exported = 0
        async with aclosing(client.documents(batch_id, status="succeeded")) as documents:
            async for document in documents:
                print_json(result_json(document))
                exported += 1
    else:
        exported = await _export_to(out, client, batch_id)
    batch = await client.snapshot(batch_id)
    rest = batch.counts.total - exported
    if rest:
        so_far = "" if batch.state.tag in ENDED_TAGS else " by now: the batch has not ended"
        print_line(f"{exported} of {batch.counts.total} documents have a result{so_far}")
    return Exit.DONE


async def _export_to(out: Path, client: BatchClient, batch_id: str) -> int:
    """Write a file that appears under its name when it is complete."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    exported = 0
    try:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            async with aclosing(client.documents(batch_id, status="succeeded")) as documents:
                async for document in documents:
                    file.write(f"{json_of(result_json(document), ascii_only=False)}\n")
                    exported += 1
        unfinished.replace(out)
    except OSError as error:
        raise CommandError(f"the file {out} cannot be written: {error.strerror}", Exit.ERROR) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return exported
