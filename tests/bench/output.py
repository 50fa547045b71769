"""What the benchmarks leave behind: JSON lines for machines, plots for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLOTS = Path(__file__).resolve().parents[2] / "docs" / "bench"

# One colour for each system in every plot (Okabe and Ito's palette: told apart also by the colour-blind).
COLOURS = {"ipamd": "#0072B2", "WARM_ENI_TARGET=1": "#D55E00", "WARM_IP_TARGET": "#999999"}


def colour(system: str) -> str:
    return next(colour for name, colour in COLOURS.items() if system.startswith(name))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pyplot() -> Any:
    """matplotlib's drawing module, for files only; None, with a word about it, where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("\nNo plot was drawn: matplotlib is not installed (.venv/bin/pip install matplotlib).")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    return plt


def save(figure: Any, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Without the time of drawing, so that the same numbers give the same file.
    figure.savefig(folder / name, metadata={"Software": None})
    print(f"\n{folder / name}")
