"""The command `serve`: the page and its API on this machine, or where a proxy reaches it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib.util import find_spec
from inspect import iscoroutine, isfunction, signature
from typing import TYPE_CHECKING, Final, cast

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.named import made_by, object_at
from durable_batches.cli.output import flush, write
from durable_batches.cli.target import store_at
from durable_batches.errors import MissingExtraError
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.reading.client import BatchClient
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import Attachable, Store
from durable_batches.worker.worker import Worker

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["listener_at", "serve_app", "serve_store"]

_GRACE_SECONDS: Final = 3
_SEND_BUFFER_BYTES: Final = 65_536
"""Of a connection, in the kernel: what a client that does not read costs."""


def serve_store(target: str | None, schema: str, *, host: str, port: int, token: str | None, read_only: bool) -> int:
    """Serve the batches of a store until the process is told to stop; return the exit code.

    Args:
        target: The store; see `store_at`.
        schema: The schema of the tables, in Postgres.
        host: The address to listen at.
        port: The port; 0: any that is free.
        token: What requests have to bear; None: a random one, which is printed.
        read_only: Refuse commands.

    Raises:
        MissingExtraError: The extra `web` is not installed.
        CommandError: The address cannot be listened at, or no request could bear the token.
    """
    _check_host(host)
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise CommandError("--token must be one word of ASCII, as a header of HTTP has it", Exit.USAGE)
    _check_extra()
    store = store_at(target, schema)
    asyncio.run(_look_at(store))
    with listener_at(host, port) as listener:
        bearer = secrets.token_urlsafe(24) if token is None else token
        write(f"listening on {_address(listener, host)}/{'' if token else f'#token={bearer}'}")
        flush()
        client = BatchClient(store, read_only=read_only and isinstance(store, Attachable))
        return _run(_of_store(client, bearer, read_only=read_only), listener)


def serve_app(target: str, *, host: str, port: int) -> int:
    """Serve an application of the user's until the process is told to stop; return the exit code.

    Args:
        target: The application, or a function without parameters that returns one, as `module:name`.
        host: The address to listen at.
        port: The port; 0: any that is free.

    Raises:
        MissingExtraError: The extra `web` is not installed.
        CommandError: There is no such application, or the address cannot be listened at.
    """
    _check_host(host)
    _check_extra()
    app = _app_at(target)
    with listener_at(host, port) as listener:
        write(f"listening on {_address(listener, host)}/")
        flush()
        return _run(app, listener)


def _app_at(target: str) -> ASGIApp:
    found = object_at(target, "application")
    if isfunction(found) and not any(each.default is each.empty for each in signature(found).parameters.values()):
        found = made_by(found, target)
    if iscoroutine(found):
        found.close()
        raise CommandError(
            f"{target} is an async function; one that makes an application is called, not awaited", Exit.USAGE
        )
    kind = type(found).__name__
    if isinstance(found, BatchClient | BatchOrchestrator | Worker | Workflow | Store):
        made = (
            "create_app(..., authorize=...) of durable_batches.web makes one of a client, a worker or an orchestrator"
        )
        raise CommandError(f"{target} is no application, but of type {kind}; {made}", Exit.USAGE)
    if not callable(found):
        raise CommandError(f"{target} is no application, but of type {kind}", Exit.USAGE)
    if not any(_takes(found, arguments) for arguments in (3, 1)):
        raise CommandError(
            f"{target} is no application of ASGI, which is called with scope, receive and send; those of Flask and "
            "Django's wsgi are of WSGI",
            Exit.USAGE,
        )
    return cast("ASGIApp", found)


def _takes(found: Callable[..., object], arguments: int) -> bool:
    try:
        signature(found).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        # Nothing is known of it.
        return True
    return True


def _check_host(host: str) -> None:
    if not host:
        # To a socket, that is every address of the machine; of an option, it is a variable that is not set.
        raise CommandError("--host must be an address; 0.0.0.0 are all of this machine's", Exit.USAGE)


def _check_extra() -> None:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtraError("web", package)


async def _look_at(store: Store) -> None:
    """Open the store once, so that what is wrong with it is said before anything is served."""
    async with BatchClient(store):
        pass


def listener_at(host: str, port: int) -> socket.socket:
    """Listen at an address.

    Raises:
        CommandError: It cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio turns the delay of small packets off only for sockets of this protocol: without it, each
    # answer waits 40 ms for the acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by the connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind((host, port))
        # So that who is told the address can connect at once.
        listener.listen()
    except OSError as error:
        listener.close()
        raise CommandError(f"cannot listen at {host}, port {port}: {error.strerror or error}", Exit.ERROR) from None
    return listener


def _address(listener: socket.socket, host: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def _of_store(client: BatchClient, token: str, *, read_only: bool) -> ASGIApp:
    """Make the application that shows a store to those who bear the token."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from durable_batches.web.access import EVERYTHING, Access
    from durable_batches.web.app import create_app

    expected = f"Bearer {token}".encode()
    # Not every store can be opened for reading only.
    access = Access(actions=("read", "read-payloads")) if read_only else EVERYTHING

    async def authorize(request: Request) -> Access:
        given = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(given, expected):
            return access
        detail = "send the token that `serve` was given, or has printed, as a header: Authorization: Bearer TOKEN"
        raise HTTPException(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})

    return create_app(client, authorize=authorize)


def _run(app: ASGIApp, listener: socket.socket) -> int:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except SystemExit:
        # With a code of its own: the application did not start. Why is in the log.
        return Exit.ERROR
    return Exit.DONE
