"""Show defaults as values: `lease=timedelta(seconds=30)`, not `lease=_DEFAULT_LEASE` or, in overloads, `lease=...`."""

from __future__ import annotations

import re
from typing import Any

import griffe

_CONSTANT = re.compile(r"_[A-Z][A-Z0-9_]*")


class DefaultsAsValues(griffe.Extension):
    """Replace a default that is a private constant by its value, and `...` in an overload by the default."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit each function of the package once it is loaded."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for member in parent.members.values():
            if isinstance(member, griffe.Function):
                for parameter in member.parameters:
                    parameter.default = _value_of(parameter.default, member.module)
                for overload in member.overloads or ():
                    for parameter in overload.parameters:
                        if str(parameter.default) == "...":
                            parameter.default = member.parameters[parameter.name].default
            elif isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)


def _value_of(default: str | griffe.Expr | None, module: griffe.Module) -> str | griffe.Expr | None:
    if not _CONSTANT.fullmatch(str(default)):
        return default
    constant = module.members.get(str(default))
    return constant.value if isinstance(constant, griffe.Attribute) and constant.value is not None else default
