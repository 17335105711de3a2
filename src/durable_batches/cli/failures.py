"""The command `errors`."""

from __future__ import annotations

from durable_batches.cli.exits import Exit
from durable_batches.cli.output import error_text, moment, print_json, write
from durable_batches.printable import printable
from durable_batches.reading.client import BatchClient
from durable_batches.reading.failures import ErrorGroup
from durable_batches.terminal.lines import print_line

__all__ = ["show_errors"]

_INDENT = " " * 8


async def show_errors(client: BatchClient, batch_id: str, *, examples: int, as_json: bool) -> int:
    """Print the failures of a batch in groups, the largest first."""
    digest = await client.errors(batch_id, examples=examples)
    if as_json:
        print_json(
            {
                "batch_id": digest.batch_id,
                "run": digest.run,
                "failed": digest.failed,
                "groups": [_group_json(group) for group in digest.groups],
                "others": digest.others,
            }
        )
    elif not digest.failed:
        print_line("no document has failed")
    else:
        for group in digest.groups:
            for line in _group_lines(group):
                write(line)
        if digest.others:
            write(f"{digest.others:>6}  in more groups than these {len(digest.groups)}")
    return Exit.DONE


def _group_json(group: ErrorGroup) -> dict[str, object]:
    examples = [
        {"document_id": example.document_id, "error": example.error, "attempts": example.attempts}
        for example in group.examples
    ]
    return {**vars(group), "examples": examples}


def _group_lines(group: ErrorGroup) -> list[str]:
    where = " of ".join(part for part in (group.activity, group.stage) if part)
    between = moment(group.first_at)
    if group.last_at != group.first_at:
        between += f" to {moment(group.last_at)}"
    shown = ", ".join(printable(example.document_id) for example in group.examples)
    more = ", ..." if group.count > len(group.examples) else ""
    return [
        f"{group.count:>6}  {error_text(group.error_type, group.message)}",
        f"{_INDENT}{f'in {printable(where)}, ' if where else ''}{between}, {group.fingerprint}",
        *([f"{_INDENT}documents: {shown}{more}"] if shown else []),
    ]
