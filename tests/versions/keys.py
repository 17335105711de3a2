"""Print the keys of calls as JSON; run with one version of the library, and with another one.

python keys.py PATH     PATH: where the library is, a folder or a wheel
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

sys.path.insert(0, sys.argv[1])

from pydantic import BaseModel, ConfigDict

from durable_batches.runtime.checkpoint import CallKeys

MOMENT: Final = datetime(2020, 1, 1, tzinfo=UTC)
IN_BERLIN: Final = datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))


class Exact(datetime):
    """A time of a class of its own."""


@dataclass
class Limited:
    score: float = 0.0
    limit: Decimal = Decimal("10")


@dataclass
class Made:
    name: str
    score: float = 0.0
    created: datetime = field(default_factory=lambda: MOMENT)
    weight: float = field(default_factory=lambda: 1.0)


@dataclass
class Dated:
    at: datetime
    score: float = 0.0


class Assigned(BaseModel):
    model_config = ConfigDict(validate_assignment=False)

    score: float = 0.0
    limit: Decimal | None = Decimal("1.0")


class Named(NamedTuple):
    number: int = 0
    at: datetime = datetime(2020, 1, 1)


def assigned(score: float) -> Assigned:
    made = Assigned(limit=Decimal("1.00"))
    made.score = score
    return made


INPUTS: Final[dict[str, tuple[Any, Any]]] = {
    "an int for a float, a default that is equal": (Limited, Limited(score=0, limit=Decimal("10.0"))),
    "an int for a float, a default of its own": (Limited, Limited(score=0)),
    "an int for a float beside what is made": (Made, Made("x", score=0)),
    "the defaults": (Made, Made("x")),
    "in a list": (list[Made], [Made("x", score=0)]),
    "in a union": (Made | str, Made("x", score=0)),
    "in anything": (Any, {"made": Made("x", score=0)}),
    "assigned": (Assigned, assigned(0)),
    "assigned as a float": (Assigned, assigned(0.0)),
    "twice the same time": (Dated, Dated(MOMENT.replace(fold=1), score=0)),
    "a time of another class": (Dated, Dated(Exact(2020, 1, 1, tzinfo=UTC), score=0)),
    "one that may be None": (Dated | None, Dated(Exact(2020, 1, 1, tzinfo=UTC), score=0)),
    "a time": (Dated, Dated(MOMENT, score=0)),
    "a zone": (Dated, Dated(IN_BERLIN, score=0)),
    "a named tuple": (Named, Named(0, datetime(2020, 1, 1, fold=1))),
    "a zone in anything": (Any, {"at": IN_BERLIN}),
    "a zone in a tuple": (tuple[datetime, ...], (IN_BERLIN,)),
    "a zone in a set": (set[datetime], {IN_BERLIN}),
    "a zone as a key": (dict[datetime, int], {IN_BERLIN: 1}),
    "a bounded deque": (deque[int], deque([1], maxlen=3)),
    "a pattern": (re.Pattern[str], re.compile("a", re.IGNORECASE)),
    "a negative zero": (list[float], [-0.0]),
    "a complex number": (complex, complex(-0.0, 1)),
}


def keys_of(annotation: Any, value: Any) -> list[str]:
    """List the key of a call, and what it is looked for by, too, where there is another one."""
    parameter = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
    keys = CallKeys("look", "1", inspect.Signature([parameter]), {"x": annotation})
    before = getattr(keys, "before", None)
    return [each.base((value,), {}) for each in (keys, before) if each is not None]


print(json.dumps({name: keys_of(annotation, value) for name, (annotation, value) in INPUTS.items()}))
