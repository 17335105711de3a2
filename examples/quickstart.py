import asyncio

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    Chunking,
    ExtractingMentions,
    Results,
    RetryFailed,
    SQLiteStore,
    StageProgress,
    durable_activity,
    map_activity,
    workflow,
)


@durable_activity(stage=Chunking)
async def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(".") if part.strip()]


@durable_activity(stage=ExtractingMentions)
async def find_names(sentence: str) -> set[str]:
    # Stands for the call that you pay for.
    return {word for word in sentence.split() if word.istitle()}


async def link(results: Results[set[str]]) -> dict[str, int]:
    # Runs once, after all documents.
    seen: dict[str, int] = {}
    async for result in results:
        for name in result.value:
            seen[name] = seen.get(name, 0) + 1
    return seen


@workflow(EXTRACTION, name="names", resolver=link)
async def extract(text: str) -> set[str]:
    sentences = await split(text)
    found = await map_activity(find_names, sentences, concurrency=16)
    return {name for names in found for name in names}


async def main() -> None:
    documents = [
        "Ada met Charles. Charles built engines.",
        "Ada wrote programs.",
    ]
    policy = RetryFailed(max_attempts=3)
    config = BatchConfig(concurrency=8, failure_policy=policy)
    store = SQLiteStore("batches.db")
    async with BatchOrchestrator(extract, store=store) as batches:
        batch_id = await batches.submit(documents, config=config)
        # Typed events without a gap; the iteration ends with the batch.
        async for event in batches.progress(batch_id):
            match event:
                case StageProgress(stage=stage, current=current, total=total):
                    print(f"{stage}: {current} of {total}")
                case _:
                    pass
        result = await batches.result(batch_id)
        names = result.raise_for_failures().value  # dict[str, int]
        print(names)


asyncio.run(main())
