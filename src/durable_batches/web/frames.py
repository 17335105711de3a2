"""Frames of server-sent events: each event and each snapshot is encoded once, however many clients are sent it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

from durable_batches.lifecycle.events import BatchEvent
from durable_batches.web.event_json import event_bytes

__all__ = ["COMMENT", "MOST_EVENTS", "RETRY", "Chunks", "chunks_of", "frame"]

MOST_EVENTS: Final = 256
"""Events in one chunk: what a client that does not read keeps in memory."""

RETRY: Final = b"retry: 2000\n\n"
"""How long a client waits before it connects again, in milliseconds."""

COMMENT: Final = b": still here\n\n"
"""What keeps a connection alive that has nothing to say."""

_KEPT: Final = 64
"""Chunks that are kept for other clients at the same point."""


def frame(data: bytes, *, event: str, id: int | None = None) -> bytes:
    """Return a message. JSON has no line breaks of its own, and tags are the library's: nothing is to be escaped."""
    head = b"" if id is None else b"id: %d\n" % id
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode(), data)


class Chunks:
    """The latest chunks that were encoded."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable, encode: Callable[[], bytes]) -> bytes:
        """Return the chunk of this key; encode it where it is not kept."""
        found = self._chunks.get(key)
        if found is None:
            found = self._chunks[key] = encode()
            if len(self._chunks) > _KEPT:
                self._chunks.popitem(last=False)
        return found


def chunks_of(events: Sequence[BatchEvent], chunks: Chunks) -> Iterator[bytes]:
    """Yield the messages of a batch's events, of at most `MOST_EVENTS` events each."""
    for start in range(0, len(events), MOST_EVENTS):
        part = events[start : start + MOST_EVENTS]
        # With the times: another batch may have the id of one that was deleted.
        key = (part[0].batch_id, part[0].seq, part[0].at, part[-1].seq, part[-1].at)

        def encode(part: Sequence[BatchEvent] = part) -> bytes:
            return b"".join(frame(event_bytes(event), event=event.tag, id=event.seq) for event in part)

        yield chunks.get(key, encode)
