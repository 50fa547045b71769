"""What `ipamctl top` shows: a function of what is known and the terminal's size, and of nothing else.

A screen is made of sections. Each says how few lines make sense of it; what is left of the height is dealt out from
the most important section on, so that a small terminal shows what matters and a large one everything.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.ctl.attention import concerns
from ipamd.ctl.event import words

# A piece of a line, and its style: one of `ipamd.ctl.terminal.STYLES`, or "".
Span = tuple[str, str]
Line = tuple[Span, ...]

SMALLEST = (20, 4)

# State of an address: its ASCII sign, its other sign, its style. The signs differ without colours, too.
SLOTS = {
    "assigned": ("#", "█", "good"),
    "cooling": ("~", "▒", "cool"),
    "free": ("o", "□", ""),
    "pending": ("+", "+", "warn"),
    "releasing": ("-", "-", "warn"),
    "foreign": ("x", "x", "dim"),
    "prefixes": ("=", "=", "dim"),
    "withheld": ("/", "/", "dim"),
    "empty": (".", "·", "dim"),
}
ADDRESSES = ("assigned", "cooling", "free", "pending", "releasing", "foreign")
GAUGE = ("assigned", "cooling", "releasing", "free", "pending")
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"
CURVES = ("free", "assigned", "cooling", "waiting")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the counts, for the curves."""

    free: int
    assigned: int
    cooling: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the daemon at the moment `now`, seconds since the epoch. `problem` says why nothing new has
    come, and is empty while the daemon answers; `node` is None until it did for the first time. `history` has
    the latest sample last."""

    now: float
    node: pb.Node | None = None
    enis: Sequence[pb.Eni] = ()
    waiting: Sequence[pb.Waiting] = ()
    events: Sequence[pb.Event] = ()
    history: Sequence[Sample] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Section:
    """It needs `least` lines; with fewer it is left out."""

    lines: Sequence[Line]
    least: int


def render(known: Known, width: int, height: int, *, ascii_only: bool = False) -> list[Line]:
    """`height` lines at most, each of `width` characters at most."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return [_cut((("too small", ""),), width)]
    head, foot = _head(known, width), (("q", "bold"), (" quit", "dim"))
    body: list[Line] = []
    if known.node is None:
        body = [((known.problem or "asking the daemon", "bad" if known.problem else "dim"),)]
    else:
        signs = 0 if ascii_only else 1
        sections = {
            "concerns": _concerns(known, width),
            "gauge": _gauge(known.node, width, signs),
            "curves": _curves(known, width, ASCII_BARS if ascii_only else BARS),
            "enis": _enis(known.enis, width, signs),
            "waiting": _waiting(known),
            "events": _events(known.events, height),
        }
        body = _fitted(sections, height - 2)
    cut = [_cut(line, width) for line in [head, *body[: height - 2]]]
    return [*cut, *[()] * (height - 1 - len(cut)), _cut(foot, width)]


# Lines from which on empty ones may stand between the sections.
_ROOMY = 20
# From the most important on; they stand on the screen in the order in which `render` names them.
_PRIORITY = ("gauge", "concerns", "enis", "curves", "waiting", "events")


def _fitted(sections: dict[str, _Section], height: int) -> list[Line]:
    """The sections' lines, with an empty one between two of them on a screen of some height."""
    given = dict.fromkeys(sections, 0)
    left = height
    for name in _PRIORITY:
        if (least := min(sections[name].least, len(sections[name].lines))) <= left:
            given[name] = least
            left -= least
    shown = [name for name in sections if given[name]]
    gaps = len(shown) - 1 if height >= _ROOMY else 0
    left -= min(left, gaps)
    for name in _PRIORITY:
        if given[name]:
            more = min(left, len(sections[name].lines) - given[name])
            given[name] += more
            left -= more
    lines: list[Line] = []
    for name in shown:
        if lines and gaps:
            lines.append(())
        lines += sections[name].lines[: given[name]]
    return lines[:height]


def _head(known: Known, width: int) -> Line:
    node = known.node
    clock = times.clock(known.now)
    if known.problem:
        state: Span = ("no daemon, trying", "bad")
    elif node is None:
        state = ("", "")
    elif node.HasField("drained"):
        state = ("drained", "warn")
    else:
        state = ("ready", "good") if node.ready else ("not ready", "bad")
    right = f"{state[0]}  {clock}"
    left = "ipamctl top"
    if node is not None:
        up = "" if known.problem else f"  up {times.span(known.now - times.seconds(node.started))}"
        full = f"{node.instance_id}  {node.instance_type}  {node.availability_zone}  ipamd {node.version}{up}"
        left = _ascii(next((t for t in (full, node.instance_id) if len(t) + len(right) + 2 <= width), ""))
    space = " " * max(1 if left else 0, width - len(left) - len(right))
    return ((left, "bold"), (space, ""), state, (f"  {clock}", "dim"))


def _concerns(known: Known, width: int) -> _Section:
    assert known.node is not None
    found = concerns(known.node, known.waiting, known.now)
    wrapped = [textwrap.wrap(_ascii(text), width, initial_indent="! ", subsequent_indent="  ") for text in found]
    return _Section([((line, "bad"),) for lines in wrapped for line in lines], 1)


def _gauge(node: pb.Node, width: int, signs: int) -> _Section:
    """One bar for all addresses that the node may have, and its numbers."""
    counts = node.counts
    room = max(node.targets.max_pods, counts.total + counts.pending, 1)
    inner = width - 2
    spans: list[Span] = [("[", "dim")]
    filled = done = 0
    for state in GAUGE:
        filled += getattr(counts, state)
        # Rounded by the sum, so that the parts never exceed the whole.
        end = min(inner, round(inner * filled / room))
        spans.append((SLOTS[state][signs] * (end - done), SLOTS[state][2]))
        done = end
    spans += [(" " * (inner - done), ""), ("]", "dim")]
    words: list[Line] = []
    for state in GAUGE:
        if (count := getattr(counts, state)) or state in ("assigned", "free"):
            sign, style = SLOTS[state][signs], SLOTS[state][2]
            words.append(((f"{sign} ", style), (f"{count} {state}", "")))
    words.append(((f"of {node.targets.max_pods} pods at most", "dim"),))
    words.append(((f"ENIs {node.slots.enis} of {node.targets.max_enis}", "dim"),))
    lines = [tuple(spans), *_packed(words, width)]
    return _Section(lines, len(lines))


def _packed(words: Sequence[Line], width: int) -> list[Line]:
    """As many pieces on a line as fit, two spaces apart."""
    lines: list[Line] = []
    left = 0
    for word in words:
        length = sum(len(text) for text, _ in word)
        if lines and length + 2 <= left:
            lines[-1] = (*lines[-1], ("  ", ""), *word)
            left -= length + 2
        else:
            lines.append(word)
            left = width - length
    return lines


def _curves(known: Known, width: int, bars: str) -> _Section:
    length = max(1, width - 15)
    recent = list(islice(known.history, max(0, len(known.history) - length), None))
    lines: list[Line] = []
    for name in CURVES:
        values = [getattr(sample, name) for sample in recent]
        top = max(values, default=0)
        curve = "".join(bars[0] if not value else bars[-(-value * (len(bars) - 1) // top)] for value in values)
        style = "bad" if name == "waiting" and any(values) else SLOTS.get(name, ("", "", ""))[2]
        now = values[-1] if values else 0
        lines.append(((f"{name:8} {now:5} ", ""), (curve, style)))
    return _Section(lines, len(CURVES))


def _enis(enis: Sequence[pb.Eni], width: int, signs: int) -> _Section:
    """One sign for each of an ENI's addresses."""
    lines: list[Line] = []
    for eni in sorted(enis, key=lambda eni: (eni.network_card, eni.device_index, eni.id)):
        name = (eni.id or "(being created)")[:21]
        used = eni.assigned
        label = f"{name:21} {eni.link or '-':6.6} {eni.state:11} {used:3}/{eni.capacity:<3} "
        if width < 80:
            label = f"{eni.link or eni.id[-6:] or '(new)':6.6} {used:3}/{eni.capacity:<3} "
        counted = {state: getattr(eni, state) for state in ADDRESSES}
        counted |= {"prefixes": len(eni.prefixes), "empty": eni.room}
        counted["withheld"] = max(0, eni.capacity - sum(counted.values()))
        slots: list[Span] = [(SLOTS[state][signs], SLOTS[state][2]) for state in SLOTS for _ in range(counted[state])]
        per_line = max(1, width - len(label))
        for start in range(0, max(1, len(slots)), per_line):
            first = (
                ((_ascii(label), "" if eni.state == "ready" else "warn"),) if not start else ((" " * len(label), ""),)
            )
            lines.append((*first, *slots[start : start + per_line]))
    return _Section(lines, 1)


def _waiting(known: Known) -> _Section:
    if not known.waiting:
        return _Section([], 0)
    lines: list[Line] = [(("waiting pods", "bold"),)]
    for w in sorted(known.waiting, key=lambda w: times.seconds(w.since)):
        who = f"{w.pod_namespace}/{w.pod_name}" if w.pod_name else w.container_id[:12]
        left = times.span(times.seconds(w.deadline) - known.now)
        text = f"  {_ascii(who):40} for {times.age(w.since, known.now)}, gives up in {left}"
        lines.append(((text, "warn"),))
    return _Section(lines, 2)


def _events(events: Sequence[pb.Event], height: int) -> _Section:
    """The latest first: on a small screen the older ones are left out."""
    if not events:
        return _Section([], 0)
    lines: list[Line] = [(("events", "bold"),)]
    for event in islice(reversed(events), height):
        style = {"warning": "warn", "error": "bad"}.get(event.level, "")
        at = times.clock(times.seconds(event.at))
        lines.append(((f"{at} ", "dim"), (f"{_ascii(event.name)} ", style or "bold"), (_ascii(words(event)), style)))
    return _Section(lines, 2)


def _ascii(text: str) -> str:
    """What comes from others must neither move the cursor nor be wider than it has characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _cut(line: Line, width: int) -> Line:
    left, spans = width, []
    for text, style in line:
        if left <= 0:
            break
        spans.append((text[:left], style))
        left -= len(text)
    return tuple(spans)
