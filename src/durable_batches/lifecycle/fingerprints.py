"""Fingerprints of failures: the same for those that differ only in numbers, ids, quotations and addresses."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Final

__all__ = ["fingerprint_of", "without_particulars"]

_PREFIX: Final = "fp1:"
"""The version of these rules: a fingerprint is stored, and compared with those of other releases."""

# Each begins where a word begins and is bounded or has no second way to match, so that no message takes long.
_URL: Final = r"(?<![\w+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"`<>]*"
_EMAIL: Final = r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"
_QUOTED: Final = r"\"[^\"\n]{0,500}\"|`[^`\n]{0,500}`|(?<!\w)'[^'\n]{0,500}'(?!\w)|“[^“”\n]{0,500}”|«[^«»\n]{0,500}»"
_WITH_DIGIT: Final = r"(?<![\w.:-])[\w.:-]*\d[\w.:-]*"
"""A number, a version, a time, an id, an address of memory or of a machine."""

_PARTICULARS: Final = re.compile(f"(?P<quoted>{_QUOTED})|(?P<url>{_URL})|(?P<email>{_EMAIL})|(?P<digits>{_WITH_DIGIT})")
_MARKS: Final = {"quoted": "'…'", "url": "<url>", "email": "<email>", "digits": "#"}


def fingerprint_of(error_type: str, activity: str | None, message: str) -> str:
    """Compute the fingerprint of a failure.

    Args:
        error_type: The name of the error's class.
        activity: The activity that failed; None: the workflow itself.
        message: The error's message.
    """
    said = json.dumps([error_type, activity, without_particulars(message)])
    return _PREFIX + blake2b(said.encode(), digest_size=8).hexdigest()


def without_particulars(message: str) -> str:
    """Replace the parts of a message that are each document's own, and put it on one line."""
    return " ".join(_PARTICULARS.sub(lambda found: _MARKS[found.lastgroup or "digits"], message).split())
