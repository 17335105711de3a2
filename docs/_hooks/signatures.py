"""Show the library as users need it: defaults as values, no deprecated names, and docstrings as Markdown.

So `lease=timedelta(seconds=30)` stands where the code has `lease=_DEFAULT_LEASE` or, in overloads, `lease=...`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_CONSTANT = re.compile(r"_[A-Z][A-Z0-9_]*")


class Signatures(griffe.Extension):
    """Change the loaded package: its functions' defaults, its deprecated functions, its docstrings."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit the package once it is loaded."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for name, member in list(parent.members.items()):
            if not member.is_alias and member.docstring is not None:
                # A colon is enough before an indented block of code.
                member.docstring.value = re.sub("::$", ":", member.docstring.value, flags=re.MULTILINE)
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
