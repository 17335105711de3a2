"""Dependencies, methods and options of activities, used in ways that cannot work."""

from __future__ import annotations

from datetime import timedelta

from tests.typing.accepted import Http, Service, connected, counted, fetch, held, http

from durable_batches import (
    BatchOrchestrator,
    MemoryStore,
    Results,
    Worker,
    Workflow,
    current_execution,
    dependency,
    durable_activity,
    map_activity,
)

# ---- dependencies -------------------------------------------------------------------------------------------------


def with_url(url: str) -> Http:
    _ = url
    return Http()


_of_another_type: str = dependency(http)  # error
_not_awaited: str = dependency(connected)  # error
_needs_an_argument = dependency(with_url)  # error
_no_provider = dependency("http")  # error


@durable_activity
async def fetch_badly(
    url: str,
    client: int = dependency(held),  # error
) -> bytes:
    return url.encode() * client


async def calls() -> None:
    await fetch("u", client="http")  # error
    await fetch()  # error


_worker = Worker(MemoryStore(), dependencies={"http": Http()})  # error
_both = BatchOrchestrator(counted, worker=Worker(MemoryStore()), dependencies={http: Http()})  # error

# ---- methods ------------------------------------------------------------------------------------------------------


async def methods(service: Service) -> None:
    await service.ask()  # error
    await service.ask(3)  # error
    await service.ask(service, "q")  # error
    await Service.ask("q")  # error
    await map_activity(service.think, ["a"])  # error
    _texts: str = await service.ask("q")  # error


# ---- options and fakes --------------------------------------------------------------------------------------------


async def options(service: Service) -> None:
    fetch.with_options(name="other")  # error
    fetch.with_options(timeout=3)  # error
    fetch.with_options(stage=int)  # error
    await service.ask.with_options(timeout=timedelta(seconds=1))(3)  # error


def fake_of_another_result(url: str, client: Http = dependency(http)) -> int:
    return len(url) + len(str(client))


def fake_of_other_arguments(url: int) -> bytes:
    return bytes(url)


def fakes() -> None:
    fetch.override(fake_of_another_result)  # error
    fetch.override(fake_of_other_arguments)  # error
    fetch.replaced(fake_of_other_arguments)  # error


def frozen() -> None:
    current_execution().attempt = 2  # error


# ---- what goes in, is what was said -------------------------------------------------------------------------------


async def of_numbers(results: Results[int]) -> int:
    return sum([result.value async for result in results])


_wider_documents: Workflow[object, object] = counted  # error
