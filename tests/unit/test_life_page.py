"""docs/life.md shows what the tables of an ENI's life say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/life.md").read_text()


@pytest.fixture(scope="module")
def life() -> ModuleType:
    spec = importlib.util.spec_from_file_location("life_picture", ROOT / "docs/pictures/life.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_life_is_drawn_from_the_tables(life: ModuleType) -> None:
    assert life.drawn(PAGE) == PAGE, "run python docs/pictures/life.py"


@pytest.mark.parametrize("old", ["    Ready --> Draining: idle\n", "| Ready | not yet |", "| throttled | unsaid |"])
def test_page_of_life_is_corrected_where_it_differs(life: ModuleType, old: str) -> None:
    assert PAGE.count(old) == 1 and life.drawn(PAGE.replace(old, "")) == PAGE


def test_page_of_life_needs_a_place_for_each_table(life: ModuleType) -> None:
    with pytest.raises(ValueError, match="0 places for: seen"):
        life.drawn(PAGE.replace("<!-- seen -->", ""))
