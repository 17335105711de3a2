"""Large payloads in any filesystem that fsspec knows; the rows of activities hold their names and digests."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b, sha256
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, finalize

from durable_batches.errors import ConfigurationError, MissingExtraError, NotInWorkflowError, PayloadError
from durable_batches.options import check_instance, check_text
from durable_batches.runtime.context import current_execution
from durable_batches.runtime.threads import Threads

__all__ = ["Blob", "BlobStorage"]

T = TypeVar("T")

_PART: Final = ".part"
_AT_ONCE: Final = 32
"""Blobs of a storage that are read or written at once."""
_NAME: Final = re.compile(r"[0-9a-f]{32}/[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in a `BlobStorage`; what activities return and take in their place.

    Attributes:
        name: The path within the storage: the folder of the batch, and the digest.
        size: The number of bytes.
        digest: Their SHA-256 digest, in hexadecimal digits.
    """

    name: str
    size: int
    digest: str


class BlobStorage:
    """Keeps bytes in a folder of a filesystem.

    A blob is named by its batch and its digest: to write the same bytes again changes nothing. A reader sees the whole
    blob or none.

    Args:
        url: The folder, as fsspec names it: a path, "s3://bucket/folder", "gs://bucket/folder".
        options: What the filesystem needs (`{"endpoint_url": ...}`); None: nothing.

    Raises:
        ConfigurationError: An argument is of a wrong type, or there is no such kind of filesystem.
        MissingExtraError: fsspec is not installed.
    """

    def __init__(self, url: str, *, options: Mapping[str, object] | None = None) -> None:
        check_text("url", url)
        check_instance("options", options, Mapping, optional=True)
        if not url:
            raise ConfigurationError("url must not be empty")
        if find_spec("fsspec") is None:
            raise MissingExtraError("fsspec", "fsspec")
        self.url: Final = url
        fsspec = cast("_Fsspec", import_module("fsspec.core"))
        try:
            self._fs, root = fsspec.url_to_fs(url, **(options or {}))
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigurationError(f"url {url!r}: {error}") from error
        self._root: Final = root.rstrip("/")
        protocols = self._fs.protocol
        self._is_local: Final = "file" in ((protocols,) if isinstance(protocols, str) else protocols)
        self._threads: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, Threads]()

    async def write(self, data: bytes) -> Blob:
        """Write bytes, in full, and return their name; within an activity, in the folder of its batch.

        Raises:
            Exception: The filesystem's own error.
        """
        check_instance("data", data, bytes)
        folder = _folder_of(_batch())
        return await self._run("write", lambda: self._write(folder, data))

    async def read(self, blob: Blob) -> bytes:
        """Return the bytes of a blob.

        Raises:
            PayloadError: The blob is missing, or its bytes are not those that were written.
            Exception: The filesystem's own error.
        """
        check_instance("blob", blob, Blob)
        if _NAME.fullmatch(blob.name) is None:
            # It comes out of a row, and must not lead out of the folder.
            raise _unreadable(blob, "has no name that a storage gives")
        return await self._run("read", lambda: self._read(blob))

    async def remove(self, batch_id: str, *, keep: Iterable[Blob] = ()) -> int:
        """Remove the blobs of a batch, also those that no row names; return how many those were.

        Args:
            batch_id: The batch, which has ended.
            keep: Blobs that stay.

        Raises:
            Exception: The filesystem's own error.
        """
        check_text("batch_id", batch_id)
        check_instance("keep", keep, Iterable)
        kept: set[str] = set()
        for blob in keep:
            check_instance("each of keep", blob, Blob)
            kept.add(blob.name)
        return await self._run("remove", lambda: self._remove(_folder_of(batch_id), kept))

    async def _run(self, method: str, function: Callable[[], T]) -> T:
        """Run on a thread of this storage: a filesystem may hang, and then have no threads of others hang with it."""
        loop = asyncio.get_running_loop()
        threads = self._threads.get(loop)
        if threads is None:
            threads = self._threads[loop] = Threads(_AT_ONCE)
            finalize(loop, threads.close)
        async with threads.one(f"BlobStorage.{method}") as run:
            result: T = await run(function)
            return result

    # ---- on threads --------------------------------------------------------------------------------------------

    def _write(self, folder: str, data: bytes) -> Blob:
        digest = sha256(data).hexdigest()
        name = f"{folder}/{digest}"
        path = self._path(name)
        if self._is_local:
            _make_folder(self._path(folder))
            _replace(path, data)
        else:
            self._fs.makedirs(self._path(folder), exist_ok=True)
            # Object stores show an object when it is there in full.
            self._fs.pipe_file(path, data)
        return Blob(name, len(data), digest)

    def _read(self, blob: Blob) -> bytes:
        try:
            data = self._fs.cat_file(self._path(blob.name))
        except FileNotFoundError as missing:
            raise _unreadable(blob, "is missing") from missing
        if len(data) != blob.size:
            raise _unreadable(blob, f"has {len(data)} bytes, and {blob.size} were written")
        if sha256(data).hexdigest() != blob.digest:
            raise _unreadable(blob, "has been changed: its digest is another one")
        return data

    def _remove(self, folder: str, kept: set[str]) -> int:
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return 0
        removed = 0
        for path in paths:
            if f"{folder}/{path.rpartition('/')[2]}" not in kept:
                # Another process may be removing them, too.
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)
                    removed += 1
        return removed

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def __repr__(self) -> str:
        return f"<blob storage at {self.url}>"


def _batch() -> str:
    try:
        return current_execution().batch_id
    except NotInWorkflowError:
        return ""


def _folder_of(batch_id: str) -> str:
    # Ids are whatever users choose, and filesystems do not take all of that.
    return blake2b(batch_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _unreadable(blob: Blob, reason: str) -> PayloadError:
    return PayloadError(f"blob {blob.name!r}", "$", reason, reading=True)


def _replace(path: str, data: bytes) -> None:
    """Write a file that is seen in full or not at all, also after a loss of power."""
    part = f"{path}.{secrets.token_hex(8)}{_PART}"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    _sync_folder(os.path.dirname(path))


def _make_folder(path: str) -> None:
    """Make a folder that is there, as what is above it, also after a loss of power."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_folder(above)
    with suppress(FileExistsError):
        os.mkdir(path)
    _sync_folder(above)


def _sync_folder(path: str) -> None:
    """Have the names in a folder outlast a loss of power."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _FileSystem(Protocol):
    @property
    def protocol(self) -> str | tuple[str, ...]: ...

    def makedirs(self, path: str, /, *, exist_ok: bool) -> None: ...

    def pipe_file(self, path: str, value: bytes, /) -> None: ...

    def cat_file(self, path: str, /) -> bytes: ...

    def ls(self, path: str, /, *, detail: bool) -> list[str]: ...

    def rm_file(self, path: str, /) -> None: ...

    def invalidate_cache(self) -> None: ...


class _Fsspec(Protocol):
    def url_to_fs(self, url: str, /, **options: Any) -> tuple[_FileSystem, str]: ...
