"""docs/simulate-policy.md: its commands work, and what it shows and explains is what they print."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from ipamd.__main__ import main
from ipamd.workload import trace

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "simulate-policy.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("ipamd ")]


def labels(lines: list[str]) -> list[str]:
    """Of the table's rows: what stands before their figures."""
    return [re.split(r"\s{2,}", line.strip())[0] for line in lines[: lines.index("best for")]]


def test_its_commands_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(block for language, block in BLOCKS if language == "json")
    with trace.writing(Path("monday.jsonl.gz")) as write:
        for event in trace.checked(example.splitlines(), "the page"):
            write(event)
    assert len(COMMANDS) == 2
    shown = next(block for language, block in BLOCKS if language == "text").splitlines()
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0
        printed = capsys.readouterr().out.splitlines()
        if "web" in command:
            # Not the figures: they may change with each decision of the pool.
            assert labels(printed) == labels(shown)
    assert Path("policy.png").stat().st_size > 10_000


def test_it_names_what_programs_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "policy", "--type", "m5.large", "--profile", "batch", "--hours", "1", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for key in (*document, *document["settings"][0], *document["verdicts"][0]):
        assert f"`{key}`" in PAGE
