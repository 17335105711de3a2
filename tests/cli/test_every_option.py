"""Every option of every command: the page about the command line has it, a test gives it, and nonsense is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from tests.cli.commands import Commands
from tests.docs.test_snippets import ROOT

from durable_batches.cli.app import app
from durable_batches.cli.exits import Exit

PAGE: Final = ROOT / "docs" / "how-to" / "use-the-command-line.md"

MINUS: Final = ("-1", "many", "1.5", "")
SECONDS: Final = ("-1", "soon", "nan", "inf", "")
DURATION: Final = ("", "-1s", "0s", "2y", "5", "1.5h", "None", "999999w")
LABEL: Final = ("tenant", "=x", "")
FOLDER: Final = (".", "")

WRONG: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "list": {
        "--state": ("complted", ""),
        "--label": LABEL,
        "--since": ("yesterday", "7y", "999999w", ""),
        "--limit": MINUS,
    },
    "watch monday": {"--interval": (*SECONDS, "0", "1e9")},
    "watch": {"--label": LABEL},
    "documents monday": {"--status": ("done", ""), "--limit": MINUS},
    "events monday": {"--after": MINUS, "--limit": MINUS},
    "errors monday": {"--examples": MINUS},
    "export monday": {"--out": FOLDER},
    "cancel": {"--label": LABEL},
    "pause monday": {"--running": ("activities", "")},
    "pause": {"--label": LABEL},
    "resume": {"--label": LABEL},
    "update --concurrency 2": {"--label": LABEL},
    "update monday": {
        "--concurrency": (*MINUS, "0"),
        "--policy": ("sometimes", "retry:0", ""),
        "--document-timeout": DURATION,
        "--budget-cost": ("", "-1", "nan", "inf", "much"),
        "--budget-tokens": (*MINUS, "None"),
        "--deadline": DURATION,
    },
    "run tests.cli.files:texts a.txt": {
        "--stdin": ("csv", ""),
        "--concurrency": (*MINUS, "0"),
        "--policy": ("sometimes", "retry:0", "continue:x", ""),
        "--label": LABEL,
        "--drain": (*SECONDS, "1e99"),
        "--batch-id": ("", "x" * 1_000),
    },
    "worker tests.cli.files:texts": {"--max-in-flight": (*MINUS, "0"), "--drain": (*SECONDS, "1e99")},
    "serve": {"--port": (*MINUS, "65536"), "--host": ("",), "--token": ("", "two words", "\u00e9", "a\n")},
    "serve --host 127.0.0.1": {"--app": ("service", "no_such_module_here:app", "")},
    "demo": {
        "--path": ("no-such-folder",),
        "--db": FOLDER,
        "--out": FOLDER,
        "--concurrency": (*MINUS, "0"),
        "--pace": (*SECONDS, "61"),
    },
}

ANYTHING: Final = {
    "--store": "see test_a_store_that_is_none",
    "--schema": "a file has none; see test_migrate",
    "--workflow": "any text may be the name of one",
    "--fingerprint": "any text may be one of a later version",
    "--reason": "any text",
    "--note": "any text",
    "--output": "a file is opened when the batch has ended",
}


@cache
def options() -> Mapping[tuple[str, str], Any]:
    """All options of all commands, by their longest names."""
    # Its class is click's, or typer's own copy of it.
    group: Any = typer.main.get_command(app)
    commands: Mapping[str, Any] = group.commands
    return {
        (name, max(parameter.opts, key=len)): parameter
        for name, command in commands.items()
        for parameter in command.params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts
    }


def test_every_option_is_refused_something_or_takes_anything() -> None:
    wrong = {(line.split()[0], option) for line, given in WRONG.items() for option in given}
    assert wrong <= options().keys()
    missing = [
        each
        for each, parameter in options().items()
        if each not in wrong and each[1] not in ANYTHING and not parameter.is_flag
    ]
    assert missing == [], "what do these refuse?"


def cases() -> Iterator[Any]:
    for line, given in WRONG.items():
        for option, values in given.items():
            yield pytest.param(line, option, values, id=f"{line.split()[0]}{option}")


@pytest.mark.parametrize(("line", "option", "values"), list(cases()))
def test_nonsense_is_refused_with_a_line_that_names_the_option(
    on_file: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, option: str, values: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    on_file.submit("monday")
    target = () if line.startswith("demo") else on_file.target
    for value in values:
        ran = on_file.bare(*line.split(), *target, f"{option}={value}")
        assert (ran.code, ran.out) == (Exit.USAGE, ""), (value, ran)
        assert option in ran.err or option.strip("-").replace("-", "_") in ran.err, (value, ran.err)
        assert len(ran.err.splitlines()) == 1, (value, ran.err)


def test_a_flag_takes_no_value(on_file: Commands) -> None:
    for (command, option), parameter in options().items():
        if parameter.is_flag:
            ran = on_file.bare(command, f"{option}=no")
            assert (ran.code, ran.out) == (Exit.USAGE, ""), (command, option)
            assert option in ran.err


def test_the_page_has_every_option_of_every_command() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {(command, option) for command, named in rows for option in re.findall(r"--[a-z-]+", named)}
    assert documented == set(options())


@cache
def words_of_tests() -> Mapping[Path, frozenset[str]]:
    """The words of each file with tests, but for this one."""
    found: dict[Path, frozenset[str]] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name != Path(__file__).name and "rejected" not in path.parts:
            found[path] = frozenset(re.findall(r"""(?<=["' ])-{0,2}[a-z][a-z-]*(?=["' ])""", path.read_text("utf-8")))
    return found


def test_a_test_gives_every_option_of_every_command() -> None:
    untried = [
        (command, option)
        for (command, option), parameter in options().items()
        if not any(
            command in words and words.intersection((*parameter.opts, *parameter.secondary_opts))
            for words in words_of_tests().values()
        )
    ]
    assert untried == []
