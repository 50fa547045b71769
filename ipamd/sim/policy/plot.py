"""A picture of the run: a panel for each setting, with its addresses over time and the pods that waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipamd.sim.policy.replay import Outcome, Sample

FORMATS = (".png", ".svg")

# Okabe and Ito's palette: told apart also by the colour-blind.
_USED, _COOLING, _FREE, _WAIT = "#0072B2", "#E69F00", "#BFE3D6", "#CC2936"
_POINTS = 1500  # more than the picture has pixels across


class NoPlot(Exception):
    """The picture can't be drawn; the message says why and what helps."""


def check(path: Path) -> None:
    """Before the work is done: raises `NoPlot`."""
    if path.suffix not in FORMATS:
        raise NoPlot(f"--plot {path}: the name must end in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise NoPlot(f"--plot {path}: {path.parent} is no directory")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise NoPlot(
            "--plot needs the package matplotlib: pip install '.[sim]' in the copy of the repository"
        ) from None


def draw(path: Path, title: str, outcomes: Mapping[str, Outcome]) -> None:
    """`outcomes` by the settings' names. Raises `NoPlot`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "svg.hashsalt": "ipamd"})
    longest = max(outcome.seconds for outcome in outcomes.values())
    unit, length = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
    figure, axes = pyplot.subplots(
        len(outcomes),
        1,
        figsize=(9, 1.0 + 1.75 * len(outcomes)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    most = max((wait.seconds for outcome in outcomes.values() for wait in outcome.waits), default=0.0)
    for axis, (name, outcome) in zip(axes[:, 0], outcomes.items(), strict=True):
        _panel(axis, outcome, length, most)
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
    axes[-1, 0].set_xlabel(unit)
    axes[-1, 0].set_xlim(0, longest / length)
    axes[-1, 0].set_ylim(bottom=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=_WAIT, marker="o", markersize=3.5, linestyle="none"))
    figure.suptitle(title, fontsize=10.5)
    figure.legend(
        handles, [*labels, "a pod that waited: seconds, right"], loc="outside lower center", ncols=4, frameon=False
    )
    # Without the time of drawing, so that the same figures give the same file.
    try:
        figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})
    except OSError as error:
        raise NoPlot(f"--plot {path}: {error.strerror or error}") from None
    pyplot.close(figure)


def _panel(axis: Any, outcome: Outcome, length: float, longest_wait: float) -> None:
    samples = thinned(outcome.samples, outcome.seconds)
    times = [sample.t / length for sample in samples] + [outcome.seconds / length]
    bottom = [0] * len(times)
    for label, colour, values in (
        ("in use", _USED, [sample.used for sample in samples]),
        ("cooling", _COOLING, [sample.cooling for sample in samples]),
        ("free", _FREE, [sample.free for sample in samples]),
    ):
        top = [low + value for low, value in zip(bottom, [*values, values[-1]], strict=True)]
        axis.fill_between(times, bottom, top, step="post", color=colour, linewidth=0, label=label)
        bottom = top
    axis.set_ylabel("addresses")
    waits = axis.twinx()
    late = [wait for wait in outcome.waits if wait.seconds > 0]
    waits.scatter(
        [wait.t / length for wait in late],
        [wait.seconds for wait in late],
        s=9,
        color=_WAIT,
        linewidths=0,
        clip_on=False,
    )
    waits.set_ylim(0, max(longest_wait * 1.1, 1.0))
    waits.set_ylabel("wait, s", color=_WAIT)
    waits.tick_params(axis="y", colors=_WAIT)


def thinned(samples: Sequence[Sample], seconds: float) -> list[Sample]:
    """Of each of so many equal spans of time, the first and the last sample and that with the most addresses in use,
    so that a short peak is seen and what lasts is true."""
    if len(samples) <= _POINTS:
        return list(samples)
    spans: dict[int, list[Sample]] = {}
    for sample in samples:
        spans.setdefault(int(sample.t / seconds * _POINTS / 3), []).append(sample)
    kept = []
    for span in spans.values():
        fullest = max(range(len(span)), key=lambda index: span[index].used)
        kept += [span[index] for index in sorted({0, fullest, len(span) - 1})]
    return kept
