"""Mutation testing of `lifecycle/`: is there a change of its code that no test notices? `make mutation` runs this.

mutmut changes one spot of the code at a time and runs `tests/lifecycle` against it. Each change that they let pass, a
survivor, is either a gap in the tests or makes no difference; `tests/lifecycle/mutants.toml` says of which it is known
that they make none, and why. This program fails where there is another one.

It works on a copy, in which it rewrites what mutmut would leave out: decorated functions. And it has the last word
where mutmut is wrong: it tries each survivor again in a new process, since some code runs only while it is imported,
which mutmut does once for all mutants.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
WORK: Final = ROOT / "build" / "mutation"
PACKAGE: Final = "src/durable_batches/lifecycle"
TESTS: Final = "tests/lifecycle"
PROPERTIES: Final = "tests/properties.py"
EXPLANATIONS: Final = f"{TESTS}/mutants.toml"

QUICK: Final = "0.1"
THOROUGH: Final = "0.5"
"""HYPOTHESIS_SCALE: for every mutant, and for those that seem to survive."""

# What pytest has for unraisable exceptions collects garbage, which would take a third of the time of each mutant.
SETTINGS: Final = f"""\
[mutmut]
source_paths=src
also_copy=conftest.py
only_mutate={PACKAGE}/*
pytest_add_cli_args_test_selection={TESTS}
pytest_add_cli_args=
    -p
    no:cacheprovider
    -p
    no:unraisableexception
do_not_mutate_patterns=assert_never
use_git_change_detection=false
"""

CONFTEST: Final = """\
from hypothesis import Phase, settings

# A failure is enough here: to look for its simplest form can take minutes.
settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutation")


def pytest_configure(config):
    # pyproject.toml deselects by it.
    config.addinivalue_line("markers", "soak: takes minutes")
"""

KILLED: Final = {1, 3, 36, 24, -24, 152, 255}
"""mutmut's exit codes: a test failed, or could not even be started, or took far too long."""


class Mutant(NamedTuple):
    """A change of the code, as `mutants.toml` names it."""

    where: str
    line: str
    becomes: str

    def __str__(self) -> str:
        return f"  in {self.where}\n    {self.line}\n    {self.becomes}"


def main() -> int:
    prepare()
    run_mutmut(sys.argv[1:])
    modules = sys.argv[1:] or sorted(module_of(path) for path in (ROOT / PACKAGE).rglob("*.py"))
    explained = explanations(modules)
    found = results(modules)
    survivors: list[Mutant] = []
    for name in (name for name, code in found.items() if code not in KILLED):
        mutant = shown(name)
        if mutant in explained or survives(name):
            survivors.append(mutant)
    return report(len(found), survivors, explained)


def module_of(path: Path) -> str:
    """Name a module as it is named on the command line and in `mutants.toml`: within `lifecycle`, with dots."""
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


# ---- the copy --------------------------------------------------------------------------------------------------


def prepare() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    for folder in ("src", TESTS):
        shutil.copytree(ROOT / folder, WORK / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Not the conftest of all tests, which knows the databases' drivers.
    shutil.copy(ROOT / PROPERTIES, WORK / PROPERTIES)
    shutil.copy(ROOT / "pyproject.toml", WORK)
    (WORK / "setup.cfg").write_text(SETTINGS)
    (WORK / "conftest.py").write_text(CONFTEST)
    for path in (WORK / PACKAGE).rglob("*.py"):
        path.write_text(undecorated(path.read_text()))


def undecorated(source: str) -> str:
    """The same code with plain functions where mutmut passes over decorated ones: properties, and what is cached.

    A cache would also keep what the code gave before it was mutated.
    """
    lines = source.splitlines()
    for function in sorted(_decorated(source), key=lambda found: found.lineno, reverse=True):
        decorator = function.decorator_list[0]
        if ast.unparse(decorator) == "property":
            assert function.end_lineno is not None
            lines.insert(function.end_lineno, f"{' ' * function.col_offset}{function.name} = property({function.name})")
        elif not ast.unparse(decorator).startswith("lru_cache("):
            continue
        del lines[decorator.lineno - 1]
    return "\n".join(lines) + "\n"


def _decorated(source: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and len(node.decorator_list) == 1:
            yield node


# ---- mutmut ----------------------------------------------------------------------------------------------------


def run_mutmut(modules: list[str]) -> None:
    """Try all mutants of these modules, or of all where none is named."""
    names = [f"durable_batches.lifecycle.{module}.*" for module in modules]
    subprocess.run([*_mutmut("run"), "--max-children", "2", *names], cwd=WORK, env=_environment(QUICK), check=True)


def results(modules: list[str]) -> dict[str, int]:
    """The exit code of each mutant of these modules, by its name."""
    found: dict[str, int] = {}
    for module in modules:
        path = WORK / "mutants" / PACKAGE / f"{module.replace('.', '/')}.py.meta"
        if path.exists():  # not of a module without functions
            found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def shown(name: str) -> Mutant:
    """What the mutant of this name changes."""
    text = subprocess.run(_mutmut("show", name), cwd=WORK, capture_output=True, text=True, check=True).stdout
    changes = [line for line in text.splitlines() if line[:1] in ("-", "+") and not line.startswith(("---", "+++"))]

    def joined(sign: str) -> str:
        return " ".join(line[1:].strip() for line in changes if line[0] == sign)

    # package.module.x_function__mutmut_1, or ....xǁClassǁmethod__mutmut_1
    module, _, function = name.removeprefix("durable_batches.lifecycle.").rpartition(".")
    function = function.rpartition("__mutmut_")[0].removeprefix("x").removeprefix("_").strip("ǁ").replace("ǁ", ".")
    return Mutant(f"{module}.{function}", joined("-"), joined("+"))


def survives(name: str) -> bool:
    """Whether all tests pass, in a process that knows nothing but the mutant."""
    mutants = WORK / "mutants"
    environment = _environment(THOROUGH) | {"MUTANT_UNDER_TEST": name, "PYTHONPATH": str(mutants / "src")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", TESTS]
    try:
        return not subprocess.run(command, cwd=mutants, env=environment, capture_output=True, timeout=300).returncode
    except subprocess.TimeoutExpired:
        return False


def _mutmut(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mutmut", *arguments]


def _environment(scale: str) -> dict[str, str]:
    """Few examples, and the same ones for every mutant."""
    return os.environ | {"CI": "1", "HYPOTHESIS_SCALE": scale}


# ---- what is known of survivors ----------------------------------------------------------------------------------


def explanations(modules: list[str]) -> set[Mutant]:
    entries = tomllib.loads((ROOT / EXPLANATIONS).read_text())["mutant"]
    return {
        Mutant(entry["in"], entry["line"], becomes)
        for entry in entries
        if any(entry["in"].startswith(f"{module}.") for module in modules)
        for becomes in entry["becomes"]
    }


def report(total: int, survivors: list[Mutant], explained: set[Mutant]) -> int:
    unexplained = [mutant for mutant in survivors if mutant not in explained]
    outdated = sorted(explained - set(survivors))
    print(f"{total} mutants: {total - len(survivors)} killed, {len(survivors) - len(unexplained)} make no difference")
    if unexplained:
        print(f"{len(unexplained)} survived, and {EXPLANATIONS} does not say why:", *unexplained, sep="\n")
    if outdated:
        print(f"{len(outdated)} are explained in {EXPLANATIONS}, but did not survive:", *outdated, sep="\n")
    return 1 if unexplained or outdated else 0


if __name__ == "__main__":
    sys.exit(main())
