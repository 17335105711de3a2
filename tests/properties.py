"""How much Hypothesis tries: modest by default, and always the same in continuous integration."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

__all__ = ["modest"]

_IN_CI: Final = bool(os.environ.get("CI"))


def modest(examples: int, *, steps: int = 50) -> settings:
    """Settings for so many examples; HYPOTHESIS_SCALE multiplies them, for a longer look."""
    return settings(
        max_examples=round(examples * float(os.environ.get("HYPOTHESIS_SCALE", "1"))),
        stateful_step_count=steps,
        deadline=None,
        derandomize=_IN_CI,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
