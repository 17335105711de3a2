"""How much Hypothesis tries: modest by default, and always the same.

A test that fails must fail again. So the examples follow from the test alone, and nothing is kept in a database of
earlier failures. HYPOTHESIS_SCALE multiplies the number of examples, for a longer look.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

__all__ = ["SAME_EVERY_TIME", "modest"]

SAME_EVERY_TIME: Final = "same-every-time"

_SCALE: Final = float(os.environ.get("HYPOTHESIS_SCALE", "1"))


def modest(examples: int, *, steps: int = 50) -> settings:
    """Settings for so many examples."""
    return settings(
        max_examples=round(examples * _SCALE),
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


settings.register_profile(
    SAME_EVERY_TIME, derandomize=True, database=None, deadline=None, max_examples=round(100 * _SCALE)
)
settings.load_profile(SAME_EVERY_TIME)
