"""That an interpreter which is forked from a warm one is like a new one, as far as a program can tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.support import PATIENCE
from tests.warm import IN_A_NAMESPACE, arguments_of, warm

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="only there are interpreters forked"),
]

LOOK = """
import __main__, json, os, signal, sys, threading, warnings

try:
    warnings.warn("refused", UserWarning)
    warned = ""
except UserWarning as warning:
    warned = str(warning)
print(json.dumps({
    "argv": sys.argv, "path": [path for path in sys.path if path], "folder": os.getcwd(), "name": __name__,
    "file": getattr(__main__, "__file__", None), "main": sorted(vars(__main__)),
    "spec": str(getattr(__main__.__spec__, "name", None)), "warned": warned, "input": sys.stdin.read(),
    "environment": dict(os.environ), "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(),
    "files": sorted(map(int, os.listdir("/proc/self/fd"))), "threads": threading.active_count(),
    "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD,
        signal.SIGPIPE, signal.SIGHUP)],
    "streams": [[stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.isatty()]
        for stream in (sys.stdout, sys.stderr)],
}))
if sys.argv[1:] == ["fails"]:
    sys.exit("failed")
if sys.argv[1:] == ["interrupted"]:
    os.kill(os.getpid(), signal.SIGINT)
"""


WAYS = (["-c", LOOK], ["-m", "look"], ["look.py"], ["-W", "error", "look.py"])
ENDS = {"well": 0, "fails": 1, "interrupted": -signal.SIGINT}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_program_sees_no_difference(unbuffered: str, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK, encoding="utf-8")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(tmp_path / "elsewhere")}
    reading, writing = os.pipe()

    def look(way: list[str], end: str) -> tuple[dict[str, Any], int, str]:
        ran = subprocess.run(
            [sys.executable, *way, end],
            cwd=tmp_path,
            env=environment,
            pass_fds=[reading],
            start_new_session=unbuffered == "1",
            input="said",
            capture_output=True,
            text=True,
            check=False,
        )
        seen: dict[str, Any] = json.loads(ran.stdout)
        # The number of the folder's own that is looked at.
        seen["files"] = [file for file in seen["files"] if file <= 2 or file == reading]
        return seen, ran.returncode, ran.stderr.splitlines()[-1] if ran.stderr else ""

    try:
        for way, end in [*((way, "well") for way in WAYS), (WAYS[0], "fails"), (WAYS[1], "interrupted")]:
            seen, code, errors = look(way, end)
            with warm():
                assert look(way, end) == (seen, code, errors)
            assert code == ENDS[end]
            assert seen["parent"] == os.getpid()
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("context", [warm, nullcontext])
def test_it_can_be_killed_like_any_other(context: Callable[[], Any]) -> None:
    with context():
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert process.poll() is None
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


ISOLATED = """
import os
mine = os.readlink("/proc/self/ns/pid")
print(mine.partition(":")[0], os.getpid(), os.getppid(), sorted(filter(str.isdigit, os.listdir("/proc"))))
print(mine)
input()
"""


def test_it_can_be_the_first_of_a_namespace_and_ends_with_who_is_outside() -> None:
    if subprocess.run([*IN_A_NAMESPACE, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may make no process namespaces")
    seen: list[tuple[str, int]] = []
    for context in (nullcontext, warm):
        with context():
            pipe = subprocess.PIPE
            command = [*IN_A_NAMESPACE, sys.executable, "-c", ISOLATED]
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        first, namespace = process.stdout.readline(), process.stdout.readline().strip()
        assert namespace != os.readlink("/proc/self/ns/pid")
        process.kill()
        # The end of its output is that of the one inside.
        assert process.communicate(timeout=PATIENCE)[0] == ""
        seen.append((first, process.returncode))
    assert seen == [("pid 1 0 ['1']\n", -signal.SIGKILL)] * 2


def test_other_programs_are_started_as_ever() -> None:
    assert arguments_of(["sleep", "1"]) is None
    assert arguments_of([sys.executable, "-X", "importtime", "-c", "pass"]) is None
    assert arguments_of([sys.executable]) is None
    assert arguments_of([sys.executable, "-W", "error", "-c", "pass", "x"]) == ["-W", "error", "-c", "pass", "x"]
