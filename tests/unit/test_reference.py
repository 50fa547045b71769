"""The pages about the settings say what the settings say."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from ipamd.__main__ import main
from ipamd.config import reference
from ipamd.config.load import load
from ipamd.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^# (?=\w+ = )", "", text)


@pytest.mark.parametrize(("action", "file"), [("example", "config.toml.example"), ("reference", "docs/config.md")])
def test_the_files_are_as_the_command_writes_them(action: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", action]) == 0
    written = (ROOT / file).read_text()
    assert capsys.readouterr().out == written, f"run: ipamd config {action} > {file}"


def test_the_example_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    assert tomllib.loads(reference.example()) == {section: {} for section in Settings.model_fields}
    file = tmp_path / "config.toml"
    file.write_text(uncommented(reference.example()))
    loaded = load(file, environ={})
    assert loaded.settings.model_dump() == Settings().model_dump()
    assert set(loaded.origins) == {key for key, _, _ in loaded.effective()}, "each is there"


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(.*?)` \| (.+) \|$", reference.page())
    defaults = [value for _, value, _ in load(environ={}).effective()]
    assert len(rows) == len(defaults)
    for (_key, default, meaning), value in zip(rows, defaults, strict=True):
        assert json.loads(default) == ("" if value is None else value)
        assert len(meaning) > 10
