"""How much Hypothesis tries: few examples by default, and always the same.

A test that fails must fail again. So the examples follow from the test alone, and nothing is kept in a database of
earlier failures. HYPOTHESIS_SCALE multiplies the number of examples, for a longer look: `make soak` tries four times as
many as the tests say. Without it these are half as many, but 25 at least: `make mutation` finds with half of them
whatever it finds.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

__all__ = ["SAME_EVERY_TIME", "modest"]

SAME_EVERY_TIME: Final = "same-every-time"

_SCALE: Final = os.environ.get("HYPOTHESIS_SCALE")
_FEWEST: Final = 25


def modest(examples: int, *, steps: int = 50) -> settings:
    """Settings for so many examples."""
    return settings(
        max_examples=_scaled(examples),
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def _scaled(examples: int) -> int:
    if _SCALE is not None:
        return round(examples * float(_SCALE))
    return max(examples // 2, min(examples, _FEWEST))


settings.register_profile(SAME_EVERY_TIME, derandomize=True, database=None, deadline=None, max_examples=_scaled(100))
settings.load_profile(SAME_EVERY_TIME)
