"""Metadata and texts in the forms that packages really use; the packages and people are made up."""

from __future__ import annotations

from tests.properties import modest

from durable_batches.extraction import (
    Chunk,
    Mention,
    RuleExtractor,
    Section,
    SourceDocument,
    Vocabulary,
    chunk_document,
    package_document,
)

quick = modest(60)
"""For property tests: no deadline, for a machine may be busy with other things."""

VOCABULARY = Vocabulary(
    packages=[
        "PyParrot",
        "numpy",
        "pytest",
        "Jinja2",
        "click",
        "rich",
        "black",
        "python-dateutil",
        "zope.interface",
    ],
    modules={"yaml": "PyYAML", "dateutil": "python-dateutil", "click": "click", "parrot": "PyParrot"},
)

PARROT = """\
Metadata-Version: 2.4
Name: Py.Parrot
Version: 1.4.2
Summary: Says it again.
Home-page: https://parrot.example-software.org/
Author: Ada Quill and Bram van Dijk
Author-email: ada@quill.dev, bram@vandijk.nl
Maintainer-email: "Núñez, Carla" <carla@nunez.es>
License: MIT
Project-URL: Source Code, https://github.com/quill/parrot.git
Classifier: License :: OSI Approved :: MIT License
Classifier: Programming Language :: Python :: 3
Requires-Python: >=3.9
Requires-Dist: click>=8.0
Requires-Dist: numpy (>=1.21,<3) ; python_version < "3.13"
Requires-Dist: pytest>=7; extra == "test"
Description-Content-Type: text/markdown

# Parrot

Parrot repeats what you say. It works with [click](https://click.palletsprojects.com/).
PyParrot knows numpy.

```
pip install "Py.Parrot[test]"
```

## License

MIT, see the file LICENSE. Contact Ada Quill <ada@quill.dev> or open an issue.
"""


def parrot() -> SourceDocument:
    return package_document(PARROT)


def chunk(text: str, section: Section = "text") -> Chunk:
    return Chunk(document_id="sample", index=0, section=section, start=0, text=text)


async def mentions_of(document: SourceDocument) -> list[Mention]:
    extractor = RuleExtractor(VOCABULARY)
    return [mention for part in chunk_document(document) for mention in await extractor.find_mentions(part)]
