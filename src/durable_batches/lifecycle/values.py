"""What states and events have in common."""

from __future__ import annotations

__all__ = ["Value"]


class Value:
    """Base of frozen dataclasses that leaves them less to generate: `@dataclass(..., repr=False, eq=False)`.

    They are shown, compared and hashed as other frozen dataclasses are. But `dataclass` would compile that for each
    class anew, and there are so many that importing the library would take noticeably longer.
    """

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))
