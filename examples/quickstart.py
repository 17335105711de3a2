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
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]


@durable_activity(stage=ExtractingMentions)
async def find_names(sentence: str) -> set[str]:  # stands for the call that you pay for
    return {word for word in sentence.split() if word.istitle()}


async def link(results: Results[set[str]]) -> dict[str, int]:  # once, after ALL documents
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
    documents = ["Ada met Charles. Charles built engines.", "Ada wrote programs."]
    async with BatchOrchestrator(extract, store=SQLiteStore("batches.db")) as batches:
        batch_id = await batches.submit(
            documents, config=BatchConfig(concurrency=8, failure_policy=RetryFailed(max_attempts=3))
        )
        async for event in batches.progress(batch_id):  # typed, gapless, ends with the run
            match event:
                case StageProgress(stage=stage, current=current, total=total, percentage=percentage):
                    print(f"{stage}: {current} of {total}, {percentage:.0f} %")
                case _:
                    pass
        names = (await batches.result(batch_id)).raise_for_failures().value  # dict[str, int]
        print(names)


asyncio.run(main())
