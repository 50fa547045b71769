"""Traces of pods that come and go: what is written is read again, and what is no trace is refused by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ipamd.workload import trace
from ipamd.workload.trace import TraceError, TraceEvent

EVENTS = [
    TraceEvent(0.0, "add", "a", "shop/web-0"),
    TraceEvent(0.0, "add", "b"),
    TraceEvent(1.5, "del", "a"),
    TraceEvent(2.25, "add", "a", "shop/wéb-1"),
]


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with trace.writing(path) as write:
        for event in EVENTS:
            write(event)
    assert trace.read(path) == EVENTS
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


def test_a_plain_file_can_be_watched_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with trace.writing(path) as write:
        write(EVENTS[0])
        assert json.loads(path.read_text()) == {"t": 0.0, "event": "add", "id": "a", "pod": "shop/web-0"}


ADD = '{"t": 1, "event": "add", "id": "a"}'


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("{", "x:1: not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[]", 'x:1: expected an object, for instance {"t": 0.5, "event": "add", "id": "a"}'),
        ('{"event": "add", "id": "a"}', 'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not null'),
        (
            '{"t": -1, "event": "add", "id": "a"}',
            'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not -1',
        ),
        (
            '{"t": NaN, "event": "add", "id": "a"}',
            'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not NaN',
        ),
        (
            f'{{"t": 1{"0" * 400}, "event": "add", "id": "a"}}',
            'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not 10',
        ),
        (
            '{"t": 1763913600, "event": "add", "id": "a"}',
            'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not 1763913600',
        ),
        ("[" * 100_000, "x:1: not JSON that anybody wrote: nested too deeply"),
        (
            '{"t": true, "event": "add", "id": "a"}',
            'x:1: "t" must be the seconds since the beginning, 0 to 1e8, not true',
        ),
        ('{"t": 1, "event": "ADD", "id": "a"}', 'x:1: "event" must be "add" or "del", not "ADD"'),
        ('{"t": 1, "event": [], "id": "a"}', 'x:1: "event" must be "add" or "del", not []'),
        ('{"t": 1, "event": "add", "id": ""}', 'x:1: "id" must be text that is not empty, not ""'),
        ('{"t": 1, "event": "add", "id": "a", "pod": 7}', 'x:1: "pod" must be text, not 7'),
        (f"{ADD}\n\n{ADD}", "x:3: add of 'a', which is there already"),
        (f'{ADD}\n{{"t": 2, "event": "del", "id": "b"}}', "x:2: del of 'b', which was never added, or is deleted"),
        (
            f'{ADD}\n{{"t": 0.5, "event": "del", "id": "a"}}',
            "x:2: t 0.5 is before 1, the line above: sort the lines by t",
        ),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(lines: str, complaint: str) -> None:
    with pytest.raises(TraceError) as raised:
        list(trace.checked(lines.splitlines(), "x"))
    assert str(raised.value).startswith(complaint)


def test_keys_that_mean_nothing_are_ignored() -> None:
    assert list(trace.checked(['{"t": 1, "event": "add", "id": "a", "node": 3}'], "x")) == [TraceEvent(1, "add", "a")]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = gzip.compress(ADD.encode() * 100)
    for name, content, complaint in (
        ("gzipped.jsonl", whole, "not text; is it gzipped?"),
        ("plain.gz", ADD.encode(), "not whole, or not gzipped"),
        ("cut.gz", whole[:-9], "not whole, or not gzipped"),
        ("damaged.gz", whole[:12] + b"\xff" * 8 + whole[20:], "not whole, or not gzipped"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TraceError, match=complaint):
            trace.read(tmp_path / name)
    with pytest.raises(TraceError, match="absent: No such file or directory"):
        trace.read(tmp_path / "absent")
