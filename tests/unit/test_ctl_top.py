"""ipamctl top: the screen as a function, and the command on a terminal that pyte plays."""

from __future__ import annotations

import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import screen
from tests.unit.ctl_daemon import SINCE, UNTIL, Daemon, event, ill, ipamctl, serving, well
from tests.unit.terminal import Terminal, top

ENI = pb.Eni(
    id="eni-0123456789abcdef0", primary=True, state="ready", link="ens5", free=2, assigned=3, cooling=1, pending=1,
    releasing=1, foreign=1, capacity=10, room=1,
)  # fmt: skip
WAITS = pb.Waiting(pod_namespace="shop", pod_name="web-0", since=SINCE, deadline=UNTIL)
SAMPLES = [screen.Sample(free=n % 9, assigned=3, cooling=0, waiting=int(n > 500)) for n in range(600)]


def known(node: pb.Node | None = None, **more: object) -> screen.Known:
    events = [event(n, "attachment.granted", pod=f"shop/web-{n}") for n in range(50)]
    rest = {"enis": [ENI], "events": events, "history": SAMPLES, **more}
    return screen.Known(SINCE.seconds + 20, node or well(), **rest)  # type: ignore[arg-type]


def texts(shown: screen.Known, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    return ["".join(text for text, _ in line) for line in screen.render(shown, width, height, ascii_only=ascii_only)]


@pytest.mark.parametrize("size", [(20, 4), (40, 10), (80, 24), (132, 50), (400, 120), (19, 24), (80, 3), (1, 1)])
@pytest.mark.parametrize("node", [well, ill])
def test_every_size_is_kept_to(size: tuple[int, int], node: Callable[[], pb.Node]) -> None:
    lines = texts(known(node(), waiting=[WAITS] * 60), *size)
    assert len(lines) <= size[1] and max(map(len, lines), default=0) <= size[0]
    if size >= screen.SMALLEST and size[1] >= screen.SMALLEST[1]:
        assert len(lines) == size[1] and lines[-1] == "q quit"


def test_an_enis_addresses_are_a_grid_of_signs() -> None:
    [line] = [line for line in texts(known(), 100, 40) if line.startswith("eni-")]
    assert line.split() == ["eni-0123456789abcdef0", "ens5", "ready", "3/10", "███▒□□+-x·"]
    [line] = [line for line in texts(known(), 100, 40, ascii_only=True) if line.startswith("eni-")]
    assert line.endswith("###~oo+-x.")
    large = pb.Eni(id="eni-1", state="ready", assigned=49, capacity=49)
    lines = [line for line in texts(known(enis=[large]), 60, 40) if "█" in line and "[" not in line]
    assert sum(line.count("█") for line in lines) >= 49 and len(lines) > 1


def test_a_small_terminal_shows_what_matters_and_a_large_one_all() -> None:
    node = ill()
    small = texts(known(node, waiting=[WAITS]), 40, 10)
    assert small[0].startswith("i-1") and "not ready" in small[0]
    assert any("! Not ready" in line for line in small) and any("5 free" in line for line in small)
    large = texts(known(node, waiting=[WAITS]), 200, 120)
    for wanted in (
        "! Subnet subnet-2 is full",
        "shop/web-0",
        "gives up in 40s",
        "shop/web-49",
        "shop/web-0",
        "waiting",
    ):
        assert any(wanted in line for line in large), wanted


def test_the_curve_rises_and_falls_with_the_counts() -> None:
    history = [screen.Sample(n, 0, 0, 0) for n in (0, 4, 8, 4, 0)]
    [free] = [line for line in texts(known(history=history), 80, 40) if line.startswith("free ")]
    assert free.split() == ["free", "0", "▁▅█▅▁"]
    [free] = [line for line in texts(known(), 40, 40) if line.startswith("free ")]
    assert len(free) == 40, "the latest, as many as there is room for"


def test_the_gauge_is_never_longer_than_the_screen() -> None:
    node = well()
    node.counts.CopyFrom(pb.Counts(free=400, assigned=3, cooling=300, releasing=200, pending=100, total=903))
    gauge = next(line for line in texts(known(node), 61, 24) if line.startswith("["))
    assert len(gauge) == 61 and gauge.endswith("]")


def test_top_without_a_daemon_says_so_and_keeps_the_last_screen() -> None:
    lines = texts(known(problem="no daemon at /s: nobody answers."), 90, 24)
    assert "no daemon, trying" in lines[0] and any(line.startswith("eni-") for line in lines)
    empty = screen.Known(SINCE.seconds, problem="no daemon at /s: there is no such socket.")
    assert texts(empty, 90, 24)[1].startswith("no daemon at /s")


def test_nothing_from_others_moves_the_cursor() -> None:
    node = ill()
    node.instance_id = node.not_ready_reason = "\x1b[2J漢字\n"
    bad = pb.Waiting(pod_namespace="\x1b", pod_name="\r", since=SINCE, deadline=UNTIL)
    shown = known(node, waiting=[bad], events=[event(1, "a\x1bb", pod="\x07")], enis=[pb.Eni(id="\x1b", link="\t")])
    assert all(c == " " or c.isprintable() for line in texts(shown, 120, 60) for c in line)


def whole(lines: list[str], height: int) -> bool:
    return lines[0].startswith("i-1") and lines[height - 1].strip() == "q quit"


def put_back(terminal: Terminal) -> bool:
    """Echo and lines again, the cursor visible, and what was on the screen before."""
    as_before = termios.tcgetattr(terminal.theirs) == terminal.before
    return as_before and not terminal.screen.cursor.hidden and terminal.raw.rstrip().endswith(b"\x1b[?1049l")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "s") as answers:
        answers.events = [event(n, "attachment.granted", pod=f"shop/web-{n}") for n in range(50)]
        yield answers


def test_it_is_live_follows_the_terminals_size_and_quits_on_q(tmp_path: Path, daemon: Daemon) -> None:
    with top(tmp_path / "s") as terminal:
        lines = terminal.shows("shop/web-49")
        assert lines[0].startswith("i-1") and "ready" in lines[0] and lines[29].strip() == "q quit"
        daemon.node.counts.free = 4
        terminal.shows("4 free")
        terminal.resize(40, 10)
        lines = terminal.until(lambda lines: whole(lines, 10), "the small screen")
        assert not any("shop/web" in line for line in lines)
        terminal.resize(140, 60)
        lines = terminal.until(lambda lines: whole(lines, 60), "the large screen")
        assert any("shop/web-20" in line for line in lines)
        assert sum(line.strip() == "q quit" for line in lines) == 1, "nothing of the old screen is left"
        assert b"\x1b[32m" in terminal.raw
        terminal.type("q")
        assert terminal.ended() == 0 and put_back(terminal)


def test_it_waits_for_a_daemon_that_restarts(tmp_path: Path) -> None:
    with serving(tmp_path / "s"), top(tmp_path / "s") as terminal:
        terminal.shows("eni-0")
        with serving(tmp_path / "moved"):
            (tmp_path / "s").rename(tmp_path / "old")
            lines = terminal.shows("no daemon, trying")
            assert any("eni-0" in line for line in lines)
            (tmp_path / "moved").rename(tmp_path / "s")
            terminal.until(lambda lines: "trying" not in lines[0], "the daemon is back")
        terminal.type("\x03")
        assert terminal.ended() == 0 and put_back(terminal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_a_signal_ends_it_and_the_terminal_is_put_back(
    tmp_path: Path, daemon: Daemon, number: signal.Signals, code: int
) -> None:
    with top(tmp_path / "s") as terminal:
        terminal.shows("eni-0")
        terminal.process.send_signal(number)
        assert terminal.ended() == code and put_back(terminal)


def test_a_fault_puts_the_terminal_back_too(tmp_path: Path, daemon: Daemon) -> None:
    with top(tmp_path / "s", PYTHONPATH=f"{tmp_path}:{Path.cwd()}") as terminal:
        terminal.close()
    (tmp_path / "sitecustomize.py").write_text(
        "import ipamd.ctl.screen as screen\n"
        "good, calls = screen.render, []\n"
        "def render(*words, **more):\n"
        "    calls.append(0)\n"
        "    return good(*words, **more) if len(calls) < 5 else 1 / 0\n"
        "screen.render = render\n"
    )
    with top(tmp_path / "s", PYTHONPATH=f"{tmp_path}:{Path.cwd()}") as terminal:
        assert terminal.ended() == 1
        assert termios.tcgetattr(terminal.theirs) == terminal.before and not terminal.screen.cursor.hidden
        assert b"ZeroDivisionError" in terminal.raw[terminal.raw.index(b"\x1b[?1049l") :]


def test_without_colours_there_are_none(tmp_path: Path, daemon: Daemon) -> None:
    with top(tmp_path / "s", NO_COLOR="1") as terminal:
        terminal.shows("eni-0")
        terminal.type("q")
        assert terminal.ended() == 0 and b"m" not in terminal.raw.replace(b"\x1b[0m", b"").split(b"\x1b[2J")[0]
        assert not any(f"\x1b[{code}m".encode() in terminal.raw for code in (1, 2, 31, 32, 33, 36))


def test_on_a_dumb_terminal_one_screen_is_printed(tmp_path: Path, daemon: Daemon) -> None:
    with top(tmp_path / "s", TERM="dumb") as terminal:
        assert terminal.ended() == 0
        assert b"\x1b" not in terminal.raw and b"eni-0" in terminal.raw
    done = ipamctl("top", "--socket", tmp_path / "s", environment={"TERM": "xterm"})
    assert (
        done.returncode == 0 and "eni-0" in done.stdout and "\x1b" not in done.stdout and "q quit" not in done.stdout
    )
    assert ipamctl("top", "--socket", tmp_path / "none").returncode == 1
    assert ipamctl("top", "-o", "json", "--socket", tmp_path / "s").returncode == 2
