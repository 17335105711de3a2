"""Build the wheel, and install it into environments that have nothing else of the repository.

python tests/wheel/environments.py wheel    # the oldest Python with the lowest versions, the newest with the newest
python tests/wheel/environments.py matrix   # every Python, and each extra alone

An environment is kept, named by a hash of what goes into it: pyproject.toml, the pins, and its Python. Only the wheel
is installed anew each time, so that the lane takes seconds once the environments are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / ".venv" / "wheel"
"""Where the distributions and the environments are."""

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
EXTRAS: Final = ("cli", "extraction", "fsspec", "otel", "postgres", "testing", "web")
APART: Final = ("dask", "llm", "ray", "resolution")
"""Extras that no environment here has: three are larger than all others together, and the lanes of clusters and of
resolution have them; of `llm`, tests have a stand-in."""
NAME: Final = "durable-batches"

_SUITABLE: Final = """
import ensurepip, ssl, sqlite3, sys, sysconfig, venv
print("no" if sysconfig.get_config_var("Py_GIL_DISABLED") else "{}.{}".format(*sys.version_info))
"""
_ELSEWHERE: Final = (
    "~/.pyenv/versions/*/bin",
    "~/.asdf/installs/python/*/bin",
    "~/.local/share/mise/installs/python/*/bin",
    "~/.local/share/uv/python/*/bin",
    "/opt/python*/bin",
    "/usr/local/bin",
)
"""Where version managers keep the interpreters that are not on the PATH."""


class Environment(NamedTuple):
    """A virtual environment with the wheel in it."""

    name: str
    folder: str
    python_version: str
    lowest: bool
    """With the lowest versions that the package's metadata allows, not with the newest that there are."""
    extras: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return Path(self.folder) / "bin" / "python"

    def __str__(self) -> str:
        extras = f" with {', '.join(self.extras)}" if self.extras else ""
        return f"{self.name}: Python {self.python_version}, {'lowest' if self.lowest else 'newest'} versions{extras}"


# ---- interpreters --------------------------------------------------------------------------------------------------


@cache
def interpreters() -> dict[str, str]:
    """The first usable interpreter of each version that this machine has, by version."""
    found: dict[str, str] = {}
    for version in PYTHONS:
        for candidate in _candidates(version):
            if _is_python(candidate, version):
                found[version] = candidate
                break
    if not found:
        sys.exit(f"none of Python {', '.join(PYTHONS)} was found")
    return found


def _candidates(version: str) -> Iterable[str]:
    name = f"python{version}"
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == version:
        yield str(Path(sys.base_prefix) / "bin" / name)
    for folder in os.get_exec_path():
        yield str(Path(folder) / name)
    for pattern in _ELSEWHERE:
        *parents, last = Path(pattern).expanduser().parts
        yield from sorted(map(str, Path(parents[0]).glob(str(Path(*parents[1:], last, name)))))


def _is_python(path: str, version: str) -> bool:
    # Run, since a file of this name proves nothing: version managers have some that only print an error.
    if not Path(path).is_file():
        return False
    ran = subprocess.run([path, "-I", "-c", _SUITABLE], capture_output=True, text=True, check=False)
    return ran.returncode == 0 and ran.stdout.strip() == version


# ---- requirements --------------------------------------------------------------------------------------------------


def requirements(extras: Iterable[str], python_version: str) -> list[Requirement]:
    """What the package needs on this Python, with these extras."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core: list[str] = metadata["dependencies"]
    optional: dict[str, list[str]] = metadata["optional-dependencies"]
    written = [*core, *(line for extra in extras for line in optional[extra])]
    marker = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    found = [Requirement(line) for line in written]
    return [each for each in found if each.marker is None or each.marker.evaluate(marker)]


def lower_bounds(needed: Iterable[Requirement]) -> dict[str, Version]:
    """The lowest version of each that is allowed; every one has to have a bound."""
    lowest: dict[str, Version] = {}
    for each in needed:
        bounds = [Version(one.version) for one in each.specifier if one.operator in (">=", "==")]
        if not bounds:
            sys.exit(f"{each} has no lower bound")
        lowest[each.name] = max([*bounds, *([lowest[each.name]] if each.name in lowest else [])])
    return lowest


# ---- building ------------------------------------------------------------------------------------------------------


def build() -> Path:
    """Build the source distribution, and the wheel from that; return the wheel."""
    distributions = KEPT / "dist"
    shutil.rmtree(distributions, ignore_errors=True)
    distributions.mkdir(parents=True)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(distributions), folder=ROOT)
    (source,) = distributions.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        _run(sys.executable, "-m", "tarfile", "-e", str(source), unpacked)
        (folder,) = Path(unpacked).iterdir()
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(distributions), folder=folder)
    (wheel,) = distributions.glob("*.whl")
    return wheel


def environment(name: str, python_version: str, *, lowest: bool, extras: Sequence[str]) -> Environment:
    """Describe an environment; it need not be there."""
    python = interpreters()[python_version]
    needed = requirements(extras, python_version)
    known = [
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        python,
        *(f"{name}=={version}" for name, version in sorted(lower_bounds(needed).items()) if lowest),
        *extras,
    ]
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
    return Environment(name, str(KEPT / f"{name}-{digest}"), python_version, lowest, tuple(extras))


def prepare(wanted: Environment, wheel: Path) -> None:
    """Make the environment where it is not there, without the ones that it replaces, and install the wheel."""
    folder = Path(wanted.folder)
    ready = folder / ".ready"
    if not ready.exists():
        for old in [*KEPT.glob(f"{wanted.name}-*")]:
            shutil.rmtree(old)
        needed = requirements(wanted.extras, wanted.python_version)
        _run(interpreters()[wanted.python_version], "-m", "venv", str(folder))
        pins = folder / "pins.txt"
        bounds = lower_bounds(needed) if wanted.lowest else {}
        pins.write_text("".join(f"{name}=={version}\n" for name, version in bounds.items()), encoding="utf-8")
        plain = [_without_marker(each) for each in needed]
        _run(*_pip(wanted), "--constraint", str(pins), *plain)
        ready.touch()
    _run(*_pip(wanted), "--no-deps", "--no-index", "--force-reinstall", str(wheel))


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _pip(wanted: Environment) -> list[str]:
    return [str(wanted.python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]


def _run(*command: str, folder: Path | None = None) -> None:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{ran.stdout}{ran.stderr}")


# ---- the lanes' environments ---------------------------------------------------------------------------------------


def of_lane(lane: str) -> list[Environment]:
    """The environments of `make wheel` or of `make matrix`."""
    pythons = list(interpreters())
    if lane == "wheel":
        return [
            environment("oldest", pythons[0], lowest=True, extras=EXTRAS),
            environment("newest", pythons[-1], lowest=False, extras=["cli"]),
        ]
    assert lane == "matrix"
    return [
        *(
            environment(f"{python}-{extra or 'core'}", python, lowest=False, extras=[extra] if extra else [])
            for python in pythons
            for extra in ("", *EXTRAS)
        ),
        *(environment(f"lowest-{extra}", pythons[0], lowest=True, extras=[extra]) for extra in EXTRAS),
    ]


def prepared(lane: str) -> list[Environment]:
    """The environments of a lane, as the last `make` of it left them; none where there was no such."""
    try:
        found: list[tuple[str, str, str, bool, list[str]]] = json.loads(
            (KEPT / f"{lane}.json").read_text(encoding="utf-8")
        )
    except FileNotFoundError:
        return []
    return [Environment(name, folder, version, low, tuple(extras)) for name, folder, version, low, extras in found]


def main(lane: str) -> None:
    wheel = build()
    wanted = of_lane(lane)
    with ThreadPoolExecutor(2) as threads:
        for each, _ in zip(wanted, threads.map(partial(prepare, wheel=wheel), wanted), strict=True):
            print(each, flush=True)
    (KEPT / f"{lane}.json").write_text(json.dumps([list(each) for each in wanted], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
