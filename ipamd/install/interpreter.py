"""The Python for the launcher: a real interpreter, never a shell wrapper or a virtual environment, whose start would
cost several times as much."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ipamd.install.placing import InstallError

DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
OLDEST_PYTHON = (3, 11)

# Run by the candidate with -IS and the launcher's path of C modules. Lines: major and minor version, magic number of
# compiled files.
_PROBE = """
import sys
sys.path[:2] = []
import _ctypes, _signal, _socket, _struct, fcntl, _frozen_importlib_external
print(*sys.version_info[:2], _frozen_importlib_external.MAGIC_NUMBER.hex(), sep="\\n")
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A real Python interpreter: its resolved path, (major, minor), the magic number of its compiled files."""

    path: Path
    version: tuple[int, int]
    magic: str


def find_interpreter(wanted: Path | None = None) -> Interpreter:
    """The interpreter to run the plugin: `wanted`; else the distribution's, which is built for speed; else the one
    that this process runs on. Raises InstallError."""
    return find_interpreters(wanted)[0]


def find_interpreters(wanted: Path | None = None) -> list[Interpreter]:
    """All that come into question, the first choice first. Raises InstallError if there is none."""
    if wanted is not None:
        return [_probe(wanted)]
    found: list[Interpreter] = []
    problems = []
    for candidate in (DISTRIBUTION_PYTHON, Path(getattr(sys, "_base_executable", sys.executable))):
        try:
            interpreter = _probe(candidate)
        except InstallError as error:
            problems.append(str(error))
        else:
            if interpreter not in found:
                found.append(interpreter)
    if not found:
        raise InstallError("\n".join([*problems, "name a Python 3.11 or later with --interpreter"]))
    return found


def _probe(candidate: Path) -> Interpreter:
    path = candidate.resolve()
    try:
        with path.open("rb") as file:
            binary = file.read(4) == b"\x7fELF"
    except OSError as error:
        raise InstallError(f"{candidate}: {error.strerror}") from None
    if not binary:
        raise InstallError(f"{candidate} is a script around an interpreter, not the interpreter itself")
    if any(character.isspace() for character in str(path)):
        raise InstallError(f"{path}: a path with spaces can't stand in a script's first line")
    unusable = f"{path} is no Python interpreter that the plugin could use"
    try:
        run = subprocess.run([path, "-IS", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{unusable}: {error}") from None
    lines = run.stdout.splitlines()
    if run.returncode or len(lines) != 3:
        reason = (run.stderr.strip().splitlines() or ["it does not answer as Python does"])[-1]
        raise InstallError(f"{unusable}: {reason}")
    major, minor, magic = lines
    version = (int(major), int(minor))
    if version < OLDEST_PYTHON:
        raise InstallError(f"{path} is Python {major}.{minor}; the plugin needs 3.11 or later")
    return Interpreter(path, version, magic)
