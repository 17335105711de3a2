"""Activities, declared and called in ways that cannot work."""

from __future__ import annotations

from datetime import timedelta

from tests.typing.accepted import count, eventual, keyed, split, text_of, words

from durable_batches import Chunking, QuotaExhausted, RetryLater, RetryPolicy, Verdict, durable_activity, map_activity

# ---- calls --------------------------------------------------------------------------------------------------------


async def wrong_arguments() -> None:
    await split(3)  # error
    await split(text=3)  # error
    await split("a", size="4")  # error
    await split("a", sice=4)  # error
    await split("a", 4, 4)  # error
    await split()  # error
    await count(["a"])  # error
    await keyed("a", "b")  # error


async def wrong_results() -> None:
    _numbers: list[int] = await split("a")  # error
    _text: str = await count("a")  # error
    _awaitable: int = await eventual(1)  # error


async def not_awaited() -> None:
    split("a")  # error
    _chunks: list[str] = split("a")  # error
    _number: int = count("a")  # error


async def awaited_the_wrong_thing() -> None:
    await split  # error
    await count("a").name  # error


async def wrong_items() -> None:
    await map_activity(count, [1, 2])  # error
    await map_activity(count, 3)  # error
    await map_activity(keyed, ["a"])  # error
    await map_activity(len, ["a"])  # error
    await map_activity(count, ["a"], concurency=2)  # error
    await map_activity(count, ["a"], concurrency="2")  # error
    _texts: list[str] = await map_activity(count, ["a"])  # error


# ---- declarations -------------------------------------------------------------------------------------------------


async def other(document: bytes) -> str:
    return str(document)


def number_of(number: int) -> int:
    return number


# The key function has other parameters, or does not return a text.
durable_activity(key=text_of)(other)  # error
durable_activity(key=text_of)(words)  # error
durable_activity(key=number_of)(words)  # error

# No such option, or not for both.
durable_activity(stages=Chunking)(words)  # error
durable_activity(key=text_of, ignore=("session",))  # error

# An option of another type.
durable_activity(stage=Chunking(done=0, total=1))(words)  # error
durable_activity(stage="chunking")(words)  # error
durable_activity(stage=int)(words)  # error
durable_activity(timeout=30)(words)  # error
durable_activity(retry=3)(words)  # error
durable_activity(ignore=[1])(words)  # error
durable_activity(run_on=3)(words)  # error
durable_activity(3)  # error

RetryPolicy(3)  # error
RetryPolicy(max_attempt=3)  # error
RetryPolicy(initial=1.5)  # error
RetryPolicy(non_retryable=(3,))  # error
RetryPolicy(retryable=lambda: True)  # error
RetryLater(30)  # error
durable_activity(classify=bool)(words)  # error
Verdict(kind="sometimes")  # error
Verdict(kind="retry", retry_after=3)  # error
QuotaExhausted(retry_after=3)  # error
RetryLater(after=timedelta(0), then=3)  # error
