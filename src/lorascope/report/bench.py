"""The tables of a bench for people: on a screen, in Markdown, and as one picture for each zoo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from lorascope.errors import MissingExtraError
from lorascope.predict.bench import BenchResult, Entry, Row, Table
from lorascope.predict.bench.paired import chance
from lorascope.predict.bench.record import file_name
from lorascope.predict.bench.run import ZooFacts
from lorascope.predict.bench.tables import Spread
from lorascope.report.numbers import DASH, number_as_text
from lorascope.report.tables import safe
from lorascope.zoo.store import write_atomically

NOTICEABLE = 0.005
"""Shares of a score below half a percent are not said to be lost."""


FLOOR = 1.0
"""How far below chance a plot reaches: r2 has no lower end, and one model far off would hide what the others do."""


class Grid(NamedTuple):
    """A table as text: its title, its header, its rows and what stands below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def bench_as_text(result: BenchResult, console: Console) -> None:
    """Print every table."""
    for zoo in result.zoos:
        for note in _zoo_notes(zoo):
            console.print(Text(safe(note)), soft_wrap=True)
    for grid in _grids(result):
        table = ScreenTable(title=safe(grid.title), title_justify="left", header_style="bold")
        for place, name in enumerate(grid.header):
            table.add_column(safe(name), justify="left" if place == 0 else "right", no_wrap=place == 0)
        for row in grid.rows:
            table.add_row(*(safe(cell) for cell in row))
        console.print(table)
        for note in grid.notes:
            console.print(Text(f"  {safe(note)}"), soft_wrap=True)
        console.print()


def bench_as_markdown(result: BenchResult) -> str:
    """Every table in Markdown."""
    parts = [f"- {_cell(note)}" for zoo in result.zoos for note in _zoo_notes(zoo)]
    for grid in _grids(result):
        lines = [f"### {_cell(grid.title)}", ""]
        lines.append("| " + " | ".join(_cell(name) for name in grid.header) + " |")
        lines.append("|---|" + "---:|" * (len(grid.header) - 1))
        lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in grid.rows]
        if grid.notes:
            lines += ["", *(f"- {_cell(note)}" for note in grid.notes)]
        parts.append("\n" + "\n".join(lines))
    return "\n".join(parts).strip() + "\n"


def write_reports(result: BenchResult, folder: Path) -> list[Path]:
    """Write ``tables.md`` and one picture for each zoo; the paths."""
    tables = folder / "tables.md"
    write_atomically(tables, bench_as_markdown(result).encode())
    return [tables, *(_plot(zoo, result, folder / f"{file_name(zoo.name)}.png") for zoo in result.zoos)]


def import_matplotlib() -> Any:
    """Matplotlib with the back end that draws into files.

    Raises:
        MissingExtraError: where it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "learn", "drawing the plots of a bench") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _zoo_notes(zoo: ZooFacts) -> list[str]:
    notes: list[str] = []
    if zoo.damaged:
        names = ", ".join(f"{one['path']} ({one['what']})" for one in zoo.damaged)
        notes.append(f"{zoo.name}: {len(zoo.damaged)} damaged adapters were left out: {names}")
    notes += [f"{zoo.name}: {label} was not asked: {reason}" for label, reason in zoo.not_asked.items()]
    return notes


def _grids(result: BenchResult) -> list[Grid]:
    facts = {zoo.name: zoo for zoo in result.zoos}
    grids: list[Grid] = []
    for table in result.tables:
        grids.append(_metrics(table, len(result.seeds)))
        if any(row.columns for row in table.rows):
            grids.append(_attacks(table, facts[table.zoo], min(result.attack_seeds, len(result.seeds))))
    return grids


def _metrics(table: Table, seeds: int) -> Grid:
    names = list(dict.fromkeys(name for row in table.rows for name in row.metrics)) or [table.metric]
    header = ("model", *names, f"Δ {table.metric} to best", "training, s", "adapters/s", "parameters")
    notes = _Notes()
    rows = [_metric_row(row, names, notes) for row in table.rows]
    said = [
        f"mean ± sd over {seeds} members; Δ: paired bootstrap over {table.tested_groups} test groups, 95 % interval",
        *([f"{table.unlabelled} adapters without a value of {table.target} were left out"] if table.unlabelled else []),
        *([] if table.best else ["no model has a score"]),
    ]
    title = (
        f"{table.zoo} · {table.target} ({table.task}): learnt from {table.taught} adapters, tested on {table.tested}"
    )
    return Grid(title, header, tuple(rows), (*said, *notes.lines))


def _metric_row(row: Row, names: Sequence[str], notes: _Notes) -> tuple[str, ...]:
    label = row.label + (" (baseline)" if row.role == "baseline" else "")
    if row.status != "ok":
        return (label, f"{row.status}{notes.mark(row.reason)}", *[DASH] * (len(names) + 3))
    difference = row.to_best
    if difference is None or not math.isfinite(difference.difference):
        to_best = DASH
    elif difference.difference == 0 and difference.low == 0:
        to_best = "best"
    else:
        to_best = f"{difference.difference:+.3f}"
        if math.isfinite(difference.low):
            to_best += f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    return (
        label,
        *(_metric(row, name, notes) for name in names),
        to_best,
        f"{row.training_seconds:.2f}",
        f"{row.adapters_per_second:,.0f}" if math.isfinite(row.adapters_per_second) else DASH,
        f"{row.parameters:,}",
    )


def _metric(row: Row, name: str, notes: _Notes) -> str:
    said = spread(row.metrics[name]) if name in row.metrics else DASH
    return said + notes.mark(f"{name} is not defined: {row.undefined[name]}") if name in row.undefined else said


def _attacks(table: Table, zoo: ZooFacts, seeds: int) -> Grid:
    notes = _Notes()
    columns = {column.name: column for column in zoo.columns}
    measured = [name for name in columns if any(name in row.columns for row in table.rows)]
    rows = [
        (row.label, *(_entry(row.columns.get(name), notes) for name in measured)) for row in table.rows if row.columns
    ]
    meanings = []
    for name, column in columns.items():
        moved = f"; ΔW moves by {column.relative_change:.2g} of its norm (median)"
        facts = next((row.columns[name] for row in table.rows if _is_ok(row.columns.get(name))), None)
        meanings.append(
            f"{name}: {column.meaning}"
            + (moved if math.isfinite(column.relative_change) else "")
            + ("" if facts is None else _said(facts))
        )
    title = f"{table.zoo} · {table.target}: {table.metric} under attack, {seeds} members"
    scale = "in brackets: the share lost of what the same members score above chance on the same adapters, unattacked"
    return Grid(title, ("model", *measured), tuple(rows), (scale, *meanings, *notes.lines))


def _is_ok(entry: Entry | None) -> bool:
    return entry is not None and entry.status == "ok"


def _said(entry: Entry) -> str:
    """What an entry knows beside its score."""
    facts = entry.facts
    said = f"; n = {entry.n}"
    if "range" in facts:
        said += f", learnt from {facts['taught']}; above: {facts['range']}"
    if facts.get("seen"):
        said += f", {facts['seen']} of groups seen in training left out"
    if facts.get("unlabelled"):
        said += f", {facts['unlabelled']} without a value left out"
    return said


def _entry(entry: Entry | None, notes: _Notes) -> str:
    if entry is None:
        return DASH
    if entry.status != "ok":
        return f"{entry.status}{notes.mark(entry.reason)}"
    lost = 1 - entry.kept
    if not math.isfinite(lost) or lost < NOTICEABLE:
        return spread(entry.score)
    return f"{spread(entry.score)} ({'all lost' if lost >= 1 else f'−{lost:.0%}'})"


def spread(value: Spread) -> str:
    """Mean and standard deviation; a dash where they are not defined.

    >>> spread(Spread(0.5, 0.01)), spread(Spread(0.5, float("nan"))), spread(Spread(float("nan"), 0.0))
    ('0.500 ± 0.010', '0.500', '–')
    """
    return number_as_text(value.mean, 3) + (f" ± {value.sd:.3f}" if math.isfinite(value.mean + value.sd) else "")


class _Notes:
    """Footnotes: a reason that is met twice has one mark."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def mark(self, reason: str | None) -> str:
        """The mark of a reason."""
        text = reason or "no reason was given"
        if text not in self._reasons:
            self._reasons.append(text)
        return f" [{self._reasons.index(text) + 1}]"

    @property
    def lines(self) -> list[str]:
        """The notes."""
        return [f"[{place}] {reason}" for place, reason in enumerate(self._reasons, 1)]


def _cell(text: str) -> str:
    """Text inside Markdown."""
    return safe(text).replace("|", "\\|").replace("<", "&lt;")


def _plot(zoo: ZooFacts, result: BenchResult, path: Path) -> Path:
    """A panel for each target: every model's first metric, with the standard deviation over members."""
    from io import BytesIO

    pyplot = import_matplotlib()
    tables = [table for table in result.tables if table.zoo == zoo.name]
    height = 0.9 + 0.3 * max(len(table.rows) for table in tables)
    figure, panels = pyplot.subplots(1, len(tables), figsize=(1.5 + 3.4 * len(tables), height), squeeze=False)
    for panel, table in zip(panels[0], tables, strict=True):
        shown = [row for row in table.rows if table.metric in row.metrics]
        shown.sort(key=lambda row: _place(row.metrics[table.metric].mean))
        floor = chance(table.task) - FLOOR
        for place, row in enumerate(shown):
            score = row.metrics[table.metric]
            colour = "#1f5fa8" if row.role == "model" else "#8a8a8a"
            if score.mean < floor:
                panel.plot(floor, place, "<", color=colour, markersize=6, clip_on=False)
                panel.annotate(f"{score.mean:.2g}", (floor, place), (6, -3), textcoords="offset points", fontsize=7)
                continue
            error = score.sd if math.isfinite(score.sd) else None
            panel.errorbar(score.mean, place, xerr=error, fmt="o", color=colour, capsize=2.5, markersize=4.5)
        panel.axvline(chance(table.task), color="#777777", linewidth=1, linestyle=":", zorder=0)
        panel.set_yticks(range(len(shown)), [safe(row.label, 40) for row in shown], parse_math=False)
        panel.set_ylim(-0.6, max(len(shown), 1) - 0.4)
        panel.set_xlabel(table.metric)
        panel.set_title(safe(f"{table.target}, n = {table.tested}", 60), fontsize=10, parse_math=False)
        panel.grid(axis="x", color="#eeeeee")
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    legend = "bars: sd over members · grey: baselines · dotted: chance · arrow: further left"
    figure.text(0.01, 0.005, legend, fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    write_atomically(path, image.getvalue())
    return path


def _place(mean: float) -> float:
    return mean if math.isfinite(mean) else -math.inf
