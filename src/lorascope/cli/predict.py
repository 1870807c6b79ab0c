"""``lorascope predict``: what a predictor says of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from lorascope.errors import LorascopeError
    from lorascope.predict import Prediction, Predictor


def predict(
    predictor: Annotated[str, typer.Argument(help="A predictor, from `lorascope fit`.")],
    adapters: Annotated[list[str], typer.Argument(help="Adapter files, folders, trees of them, or hub ids.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per adapter, a line each.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A CSV table.")] = False,
) -> None:
    """Predict for adapters, with an interval or probabilities. A bad file gives an error and the others go on."""
    from pathlib import Path

    from lorascope.cli.output import print_error, print_json
    from lorascope.errors import LorascopeError
    from lorascope.predict import Predictor

    if as_json and as_csv:
        raise LorascopeError("--json and --csv exclude each other")
    loaded = Predictor.load(Path(predictor))
    writer = _CsvWriter() if as_csv else None
    failed = False
    for result in _results(loaded, adapters):
        if isinstance(result, LorascopeError):
            failed = True
            print_error(result, as_json=as_json)
        elif as_json:
            print_json(result.as_dict())
        elif writer is not None:
            writer.write(result)
        else:
            _print(result)
    if failed:
        raise typer.Exit(2)


def _results(predictor: Predictor, adapters: list[str]) -> Iterator[Prediction | LorascopeError]:
    from dataclasses import replace

    from lorascope.cli.output import track
    from lorascope.errors import LorascopeError
    from lorascope.formats import read

    locations = list(_locations(adapters))
    for location in track(locations, len(locations), "predicting"):
        if isinstance(location, LorascopeError):
            yield location
            continue
        try:
            [prediction] = predictor.predict([read(location)])
            yield replace(prediction, path=str(location))
        except LorascopeError as error:
            error.file = error.file or str(location)
            yield error


def _locations(adapters: list[str]) -> Iterator[str | Path | LorascopeError]:
    from pathlib import Path

    from lorascope.errors import LorascopeError
    from lorascope.formats import find

    for adapter in adapters:
        try:
            if Path(adapter).is_dir():
                yield from find(Path(adapter)) or [adapter]  # reading an empty folder says what is missing
            else:
                yield adapter
        except LorascopeError as error:
            yield error


def _print(prediction: Prediction) -> None:
    from rich.text import Text

    from lorascope.cli.output import console

    if prediction.interval is not None:
        low, high = prediction.interval
        said = f"{prediction.value:.4g}  (90 % interval {low:.4g} to {high:.4g})"
    elif prediction.probabilities is not None:
        likely = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:12]
        value = prediction.value
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        said = f"{shown}  ({', '.join(f'{name}: {share:.2f}' for name, share in likely)})"
    else:
        said = f"{prediction.value:.4g}  (too few samples for an interval)"
    console().print(Text(f"{prediction.path}\n  {prediction.target}: {said}"), soft_wrap=True)


class _CsvWriter:
    """Predictions as CSV; the header is that of the first."""

    def __init__(self) -> None:
        import csv
        import sys

        self._writer = csv.writer(sys.stdout)
        self._names: list[str] | None = None

    def write(self, prediction: Prediction) -> None:
        """One row: path, value, interval, one column per probability, sd."""
        probabilities = prediction.probabilities or {}
        if self._names is None:
            self._names = list(probabilities)
            columns = [f"probability_{name}" for name in self._names]
            self._writer.writerow(["path", prediction.target, "low", "high", *columns, "sd"])
        value = prediction.value
        shown = ";".join(map(str, value)) if isinstance(value, list) else value
        low, high = prediction.interval or ("", "")
        shares = [probabilities[name] for name in self._names]
        self._writer.writerow([prediction.path, shown, low, high, *shares, prediction.sd])
