"""Show signatures as users need them: defaults as values, and no deprecated names.

So `lease=timedelta(seconds=30)` stands where the code has `lease=_DEFAULT_LEASE` or, in overloads, `lease=...`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_CONSTANT = re.compile(r"_[A-Z][A-Z0-9_]*")


class Signatures(griffe.Extension):
    """Replace a default that is a private constant by its value, and `...` in an overload by the default."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit each function of the package once it is loaded."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for name, member in list(parent.members.items()):
            if isinstance(member, griffe.Function):
                if any(str(decorator.value).startswith("deprecated(") for decorator in member.decorators):
                    del parent.members[name]
                _show_defaults(member)
            elif isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)


def _show_defaults(function: griffe.Function) -> None:
    for parameter in function.parameters:
        parameter.default = _value_of(parameter.default, function.module)
    for overload in function.overloads or ():
        for parameter in overload.parameters:
            if str(parameter.default) == "...":
                parameter.default = function.parameters[parameter.name].default


def _value_of(default: str | griffe.Expr | None, module: griffe.Module) -> str | griffe.Expr | None:
    if not _CONSTANT.fullmatch(str(default)):
        return default
    constant = module.members.get(str(default))
    return constant.value if isinstance(constant, griffe.Attribute) and constant.value is not None else default
