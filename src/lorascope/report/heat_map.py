"""A matrix of distances as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lorascope.errors import MissingExtraError, OutputError
from lorascope.formats.output_file import replaced_file
from lorascope.report.tables import safe

_NUMBERS = 12
"""Up to so many adapters the values are written into the cells."""


def write_heat_map(path: Path, values: NDArray[Any], names: Sequence[str], title: str) -> None:
    """Write a heat map of [n, n] values as PNG, SVG or PDF, by the ending of ``path``.

    Raises:
        MissingExtraError: without matplotlib.
        OutputError: for another ending, or where the file cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise OutputError("a plot of that kind is not written", file=path, expected=".png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("matplotlib", "learn", "a plot") from error
    size = min(12.0, 3.0 + 0.35 * len(names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", vmin=0.0)
    figure.colorbar(image, ax=axes)
    # matplotlib would take what stands between two $ for mathematics
    labels = [safe(Path(name).name, 32).replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_title(title)
    if len(names) <= _NUMBERS:
        middle = float(values.max(initial=0.0)) / 2
        for row in range(len(names)):
            for column in range(len(names)):
                value = float(values[row, column])
                colour = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=colour, fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=150)
    with replaced_file(path) as temporary:
        temporary.write_bytes(stream.getvalue())
