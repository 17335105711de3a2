from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import quick

from durable_batches.extraction.licenses import license_of_classifier, licenses_in, parse_expression


@pytest.mark.parametrize(
    ("expression", "licenses"),
    [
        ("MIT", ["MIT"]),
        ("mit", ["MIT"]),
        ("Apache-2.0 OR BSD-2-Clause", ["Apache-2.0", "BSD-2-Clause"]),
        ("apache-2.0 or bsd-2-clause", ["Apache-2.0", "BSD-2-Clause"]),
        ("MIT AND (Apache-2.0 WITH LLVM-exception OR MIT)", ["MIT", "Apache-2.0 WITH LLVM-exception"]),
        ("GPL-2.0+", ["GPL-2.0+"]),
        ("LicenseRef-Proprietary", ["LicenseRef-Proprietary"]),
    ],
)
def test_an_expression_is_parsed(expression: str, licenses: list[str]) -> None:
    assert parse_expression(expression) == licenses


@pytest.mark.parametrize(
    "expression",
    ["", "()", "MIT OR", "OR MIT", "MIT Apache-2.0", "(MIT", "MIT)", "MIT/BSD", "WITH x", "a, b", "MIT OR Unknown-1.0"],
)
def test_an_invalid_expression_is_none(expression: str) -> None:
    assert parse_expression(expression) is None


identifiers = st.sampled_from(["MIT", "ISC", "Apache-2.0", "BSD-3-Clause", "MPL-2.0", "GPL-3.0-or-later"])
expressions = st.recursive(
    identifiers,
    lambda inner: st.tuples(inner, st.sampled_from([" AND ", " OR "]), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=8,
)


@quick
@given(expressions)
def test_every_well_formed_expression_is_parsed(expression: str) -> None:
    parsed = parse_expression(expression)
    assert parsed is not None
    assert set(parsed) == {word.strip("()") for word in expression.split()} - {"AND", "OR"}


@pytest.mark.parametrize(
    ("text", "licenses"),
    [
        ("MIT", ["MIT"]),
        ("MIT License", ["MIT"]),
        ("The MIT License (MIT)", ["MIT"]),
        ("BSD", ["BSD"]),
        ("BSD License", ["BSD"]),
        ("BSD 3-Clause", ["BSD-3-Clause"]),
        ("BSD-3-Clause", ["BSD-3-Clause"]),
        ("3-Clause BSD License", ["BSD-3-Clause"]),
        ("New BSD License", ["BSD-3-Clause"]),
        ("Simplified BSD", ["BSD-2-Clause"]),
        ("Apache 2.0", ["Apache-2.0"]),
        ("Apache License, Version 2.0", ["Apache-2.0"]),
        ("Apache Software License 2.0", ["Apache-2.0"]),
        ("Apache Software License", ["Apache"]),
        ("MPL 2.0", ["MPL-2.0"]),
        ("Mozilla Public License 2.0 (MPL 2.0)", ["MPL-2.0"]),
        ("GPLv3", ["GPL-3.0"]),
        ("GPL v3 or later", ["GPL-3.0-or-later"]),
        ("GPLv2+", ["GPL-2.0-or-later"]),
        ("GNU GPL", ["GPL"]),
        ("LGPL-2.1-only", ["LGPL-2.1-only"]),
        ("LGPLv2.1+", ["LGPL-2.1-or-later"]),
        ("GNU Lesser General Public License v3", ["LGPL-3.0"]),
        ("GNU Affero General Public License v3 or later (AGPLv3+)", ["AGPL-3.0-or-later"]),
        ("PSF", ["PSF-2.0"]),
        ("ISC License (ISCL)", ["ISC"]),
        ("Dual license: Apache 2.0 and BSD-3-Clause", ["Apache-2.0", "BSD-3-Clause"]),
        ("MIT/Apache-2.0", ["MIT", "Apache-2.0"]),
        ("Public Domain", ["Public Domain"]),
        ("All Rights Reserved", ["Proprietary"]),
        ("permit, commit and submit", []),
        ("", []),
    ],
)
def test_a_licence_is_recognised_by_its_names(text: str, licenses: list[str]) -> None:
    assert licenses_in(text) == licenses


MIT_TEXT = """
    Copyright (c) 2031 Ada Quill

    Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
    associated documentation files (the "Software"), to deal in the Software without restriction,
    including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
    and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
    subject to the following ...
"""
BSD_TEXT = """
    Redistribution and use in source and binary forms, with or without modification, are permitted
    provided that the following conditions are met: Redistributions of source code must retain the above
    copyright notice, this list of conditions and the following disclaimer. Redistributions in binary form
    must reproduce the above copyright notice, this list of conditions and the following disclaimer in the
    documentation and/or other ...
"""


def test_a_licence_is_recognised_by_its_whole_text() -> None:
    assert licenses_in(MIT_TEXT) == ["MIT"]
    assert licenses_in(BSD_TEXT) == ["BSD-2-Clause"]
    assert licenses_in(BSD_TEXT + "Neither the name of the copyright holder nor ...") == ["BSD-3-Clause"]


@pytest.mark.parametrize(
    ("classifier", "licenses"),
    [
        ("License :: OSI Approved :: MIT License", ["MIT"]),
        ("License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)", ["GPL-3.0-or-later"]),
        ("License :: OSI Approved", []),
        ("License :: Free For Home Use", ["Free For Home Use"]),
        ("Programming Language :: Python :: 3", []),
    ],
)
def test_a_classifier_names_its_licence(classifier: str, licenses: list[str]) -> None:
    assert license_of_classifier(classifier) == licenses


@quick
@given(st.text(max_size=600))
def test_any_text_is_answered(text: str) -> None:
    assert len(licenses_in(text)) == len(set(licenses_in(text)))
    assert parse_expression(text) != []
