"""Plots of what was measured. matplotlib is imported when one is drawn: the measuring machine need not have it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from descant_bench.percentiles import percentile


class MatplotlibMissing(RuntimeError):
    pass


def plot_ratios(ratios: Sequence[tuple[str, float, float | None]], path: Path) -> None:
    """A bar for each (workload, ratio to the peer, what is wanted); the marks are what is wanted."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(ratios) + 1.2), layout="constrained")
    places = range(len(ratios))
    axes.barh(places, [ratio for _, ratio, _ in ratios], color="#4477aa", height=0.6)
    for place, (_, _, wanted) in enumerate(ratios):
        if wanted is not None:
            axes.plot([wanted, wanted], [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    axes.axvline(1.0, color="#888888", linewidth=1)
    axes.set_yticks(places, [name for name, _, _ in ratios])
    axes.invert_yaxis()
    axes.set_xlabel("throughput, vLLM = 1; red: wanted")
    _save(figure, path)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, x_label: str, y_label: str, log_x: bool = False
) -> None:
    """A line for each named series of (x, y)."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [y for _, y in ordered], marker="o", label=name)
    if log_x:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if curves:
        axes.legend()
    _save(figure, path)


def plot_distributions(samples: Mapping[str, Sequence[float]], path: Path, *, unit: str) -> None:
    """The share of each named series that is below a value."""
    shares = [step / 200 for step in range(201)]
    curves = {
        name: [(percentile(values, share), share) for share in shares] for name, values in samples.items() if values
    }
    plot_curves(curves, path, x_label=unit, y_label="share of requests", log_x=True)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise MatplotlibMissing("plots need matplotlib: pip install 'descant-bench[plots]'") from error
    mpl.use("svg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path)
    _pyplot().close(figure)
