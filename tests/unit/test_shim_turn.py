"""Turns of the plugin's runs, each run a process of its own: the kernel's locks are a process's."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_shim import turn

NAME, OTHER = "ipm0123456789ab", "ipmfedcba987654"

# Says whether it has the turn, then answers each line: whether it was overtaken.
PROGRAM = """
import sys, time
from cni_shim.turn import Turn
turn = Turn(sys.argv[1], sys.argv[2])
print(turn.take(time.monotonic() + float(sys.argv[3]), overtake=sys.argv[4] == "DEL"), flush=True)
for line in sys.stdin:
    print(turn.overtaken(), flush=True)
"""


class Run:
    def __init__(self, folder: Path, verb: str, name: str, wait: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), name, str(wait), verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _says(self) -> bool:
        assert self.process.stdout is not None
        word = self.process.stdout.readline().strip()
        assert word in ("True", "False")
        return word == "True"

    def has_turn(self) -> bool:
        return self._says()

    def overtaken(self) -> bool:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self._says()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs = []

    def begin(verb: str, name: str = NAME, wait: float = 0.0) -> Run:
        runs.append(Run(tmp_path, verb, name, wait))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def test_a_turn_is_one_runs_and_free_when_that_is_killed(start: Start) -> None:
    first = start("ADD")
    assert first.has_turn()
    assert not start("ADD").has_turn()
    assert start("ADD", OTHER).has_turn()
    waiting = start("ADD", wait=30)
    first.end()
    assert waiting.has_turn()


def test_a_del_tells_the_add_under_way_and_those_that_wait(start: Start) -> None:
    adding, other = start("ADD"), start("ADD", OTHER)
    assert adding.has_turn() and other.has_turn()
    waiting = start("ADD", wait=30)
    assert not start("ADD").has_turn()
    assert not adding.overtaken(), "another ADD only waits"
    assert not start("DEL").has_turn()
    assert adding.overtaken() and not other.overtaken()
    adding.end()
    assert waiting.has_turn()


def test_a_stopped_add_learns_of_a_del_that_has_ended(start: Start) -> None:
    adding = start("ADD")
    assert adding.has_turn()
    adding.process.send_signal(signal.SIGSTOP)
    deleting = start("DEL")
    assert not deleting.has_turn()
    deleting.end()
    adding.process.send_signal(signal.SIGCONT)
    assert adding.overtaken()


def test_an_add_after_a_del_is_not_overtaken(start: Start) -> None:
    assert start("ADD").has_turn()
    assert not start("DEL").has_turn()
    after = start("ADD", OTHER)
    assert after.has_turn() and not after.overtaken()


def test_runs_leave_one_file_of_one_size_that_is_roots(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "ipamd"
    for number in range(300):
        turn.Turn(str(folder), f"ipm{number * 0x123456789:012x}").close()
    (file,) = folder.iterdir()
    assert file.name == turn.FILE
    found = file.stat()
    assert (found.st_size, found.st_mode & 0o777, found.st_uid) == (turn.MARKS, 0o600, os.geteuid())
    assert found.st_blocks * 512 >= turn.MARKS, "a mark needs no space on a full disk"
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("planted", ["link", "loop", "open to all", "another's", "folder", "pipe", "socket"])
def test_what_is_not_roots_alone_is_moved_and_made_anew(tmp_path: Path, start: Start, planted: str) -> None:
    file, victim = tmp_path / turn.FILE, tmp_path / "victim"
    victim.write_text("precious")
    match planted:
        case "link":
            file.symlink_to(victim)
        case "loop":
            file.symlink_to(file)
        case "open to all":
            file.touch()
            file.chmod(0o666)
        case "another's":
            file.touch()
            os.chown(file, 65534, 65534)
        case "folder":
            (file / "full").mkdir(parents=True)
        case "pipe":
            os.mkfifo(file, 0o600)
        case _:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(file))
    adding = start("ADD")
    assert adding.has_turn() and not start("DEL").has_turn() and adding.overtaken()
    found = file.lstat()
    assert (found.st_size, found.st_mode, found.st_uid) == (turn.MARKS, stat.S_IFREG | 0o600, os.geteuid())
    assert os.path.lexists(f"{file}.odd") and victim.read_text() == "precious"


def test_a_file_that_can_not_be_moved_is_refused(tmp_path: Path) -> None:
    file = tmp_path / turn.FILE
    file.touch()
    file.chmod(0o666)
    (tmp_path / f"{turn.FILE}.odd").mkdir()
    with pytest.raises(OSError):
        turn.Turn(str(tmp_path), NAME)


def test_a_mark_keeps_when_the_file_is_used_again(tmp_path: Path, start: Start) -> None:
    adding = start("ADD")
    assert adding.has_turn()
    assert not start("DEL").has_turn()
    marks = (tmp_path / turn.FILE).read_bytes()
    assert start("ADD", OTHER).has_turn()
    assert (tmp_path / turn.FILE).read_bytes() == marks
