from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import parrot, quick

from durable_batches.extraction import SourceDocument, chunk_document

texts = st.text(st.sampled_from("ab .\n") | st.characters(exclude_categories=["Cs"]), max_size=300)


@quick
@given(
    texts,
    st.dictionaries(st.sampled_from(["Name", "Author"]), st.lists(texts, max_size=3)),
    st.integers(1, 50),
)
def test_the_chunks_are_the_document(text: str, metadata: dict[str, list[str]], size: int) -> None:
    chunks = chunk_document(SourceDocument(id="d", title="d", text=text, metadata=metadata), size=size)
    assert "".join(chunk.text for chunk in chunks if chunk.section == "text") == text
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(1 <= len(chunk.text) <= size for chunk in chunks)
    for section in ("metadata", "text"):
        own = [chunk for chunk in chunks if chunk.section == section]
        whole = "".join(chunk.text for chunk in own)
        assert all(whole[chunk.start : chunk.start + len(chunk.text)] == chunk.text for chunk in own)


def test_a_text_is_cut_where_a_reader_would_pause() -> None:
    document = SourceDocument(id="d", title="d", text="One two three.\n\nFour five six seven eight nine ten.")
    assert [chunk.text for chunk in chunk_document(document, size=20)] == [
        "One two three.\n\n",
        "Four five six seven ",
        "eight nine ten.",
    ]


def test_metadata_is_rendered_as_lines() -> None:
    metadata = next(chunk for chunk in chunk_document(parrot()) if chunk.section == "metadata")
    assert metadata.text.startswith("Metadata-Version: 2.4\nName: Py.Parrot\n")
    document = SourceDocument(id="d", title="d", text="", metadata={"License": ["one\n\n two"], "Name": ["x"]})
    assert chunk_document(document)[0].text == "License: one\n        \n        two\nName: x\n"


def test_an_empty_document_has_no_chunks() -> None:
    assert chunk_document(SourceDocument(id="d", title="d", text="")) == []


def test_a_chunk_holds_something() -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        chunk_document(parrot(), size=0)
