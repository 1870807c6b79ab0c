"""``lorascope predict``: what a predictor says of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from lorascope.errors import LorascopeError
    from lorascope.predict import Prediction, Predictor
    from lorascope.predict.explanation import Explanation


def predict(
    predictor: Annotated[str, typer.Argument(help="A predictor, from `lorascope fit`.")],
    adapters: Annotated[list[str], typer.Argument(help="Adapter files, folders, trees of them, or hub ids.")],
    level: Annotated[float, typer.Option(help="The share of truths that intervals and sets are to hold.")] = 0.9,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which sites, features and directions the value comes from.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Give a value also for adapters unlike those of training, marked as such.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per adapter, a line each.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A CSV table.")] = False,
) -> None:
    """Predict for adapters what a predictor was fitted to.

    With an interval or probabilities; it abstains where adapters are unlike those of training. A bad file gives an
    error and the others go on. Exit code 1 where the predictor abstained on some.
    """
    from pathlib import Path

    from lorascope.cli.output import print_error, print_json
    from lorascope.errors import LorascopeError
    from lorascope.predict import Predictor
    from lorascope.predict.conformal import check_level

    if as_json and as_csv:
        raise LorascopeError("--json and --csv exclude each other")
    if explain and as_csv:
        raise LorascopeError("an explanation is no row of a table", hint="use --explain with --json, or alone")
    check_level(level)
    loaded = Predictor.load(Path(predictor))
    writer = _CsvWriter(force=force) if as_csv else None
    failed = abstained = False
    for result in _results(loaded, adapters, level, explain=explain):
        if isinstance(result, LorascopeError):
            failed = True
            print_error(result, as_json=as_json)
            continue
        prediction, explanation = result
        is_said = force or not prediction.abstained
        abstained = abstained or prediction.abstained
        if as_json:
            facts = prediction.as_dict(force=force)
            if explain:
                facts["explanation"] = explanation.as_dict() if explanation is not None and is_said else None
            print_json(facts)
        elif writer is not None:
            writer.write(prediction)
        else:
            _print(prediction, force=force)
            if explanation is not None and is_said:
                _print_explanation(explanation)
    if failed or abstained:
        raise typer.Exit(2 if failed else 1)


def _results(
    predictor: Predictor, adapters: list[str], level: float, *, explain: bool
) -> Iterator[tuple[Prediction, Explanation | None] | LorascopeError]:
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
            adapter = read(location)
            [prediction] = predictor.predict([adapter], level=level)
            explanation = replace(predictor.explain([adapter])[0], path=str(location)) if explain else None
            yield replace(prediction, path=str(location)), explanation
        except LorascopeError as error:
            error.file = error.file or str(location)
            yield error


def _locations(adapters: list[str]) -> Iterator[str | Path | LorascopeError]:
    from pathlib import Path

    from lorascope.cli.sources import say_files_beside
    from lorascope.errors import LorascopeError
    from lorascope.formats import find

    for adapter in adapters:
        try:
            if Path(adapter).is_dir():
                found = find(Path(adapter))
                say_files_beside(found, "judged")
                yield from found or [adapter]  # reading an empty folder says what is missing
            else:
                yield adapter
        except LorascopeError as error:
            yield error


def _print(prediction: Prediction, *, force: bool) -> None:
    from rich.text import Text

    from lorascope.cli.output import console

    warning = f"unlike the adapters of training: {prediction.reason} (p = {prediction.p_value:.2g})"
    if prediction.abstained and not force:
        said = f"no value; {warning}; --force gives one all the same"
    else:
        said = _said(prediction) + (f"\n    not to be relied on: {warning}" if prediction.abstained else "")
    console().print(Text(f"{prediction.path}\n  {prediction.target}: {said}"), soft_wrap=True)


def _said(prediction: Prediction) -> str:
    percent = f"{100 * prediction.level:g} %"
    if prediction.interval is not None:
        low, high = prediction.interval
        return f"{prediction.value:.4g}  ({percent} interval {low:.4g} to {high:.4g})"
    if prediction.probabilities is None:
        return f"{prediction.value:.4g}  (too few samples for a {percent} interval)"
    likely = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:12]
    value = prediction.value
    shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    said = f"{shown}  ({', '.join(f'{name}: {share:.2f}' for name, share in likely)})"
    if prediction.classes is not None:
        said += f"; with {percent}, one of: {', '.join(map(str, prediction.classes))}"
    return said


def _print_explanation(explanation: Explanation) -> None:
    """The baseline, the largest sites with their directions, and the features."""
    from rich.text import Text

    from lorascope.cli.output import console

    what = "" if explanation.label is None else f" for {explanation.label}"
    lines = [f"    {explanation.unit}{what} {explanation.score:+.4g}"]
    if explanation.baseline is not None:
        lines[0] += f" = {explanation.baseline:+.4g} in the mean of training, and from its sites:"
    else:
        lines[0] += "; its change per relative change of ΔW at a site:"
    for site, directions in explanation.directions.items():
        parts = ", ".join(f"{part:+.3g} (σ {sigma:.3g})" for sigma, part in directions[:4])
        lines.append(f"      {explanation.sites[site]:+.3g}  {site}" + (f": {parts}" if parts else ""))
    if rest := len(explanation.sites) - len(explanation.directions):
        left = sum(part for site, part in explanation.sites.items() if site not in explanation.directions)
        lines.append(f"      {left:+.3g}  {rest} other sites")
    if explanation.features:
        lines.append(
            "    by feature: " + ", ".join(f"{part:+.3g} {name}" for name, part in explanation.features.items())
        )
    console().print(Text("\n".join(lines)), soft_wrap=True)


class _CsvWriter:
    """Predictions as CSV; the header is that of the first."""

    def __init__(self, *, force: bool) -> None:
        import csv
        import sys

        self._force = force
        self._writer = csv.writer(sys.stdout)
        self._names: list[str] | None = None

    def write(self, prediction: Prediction) -> None:
        """One row: path, value, interval, one column per probability, sd, how familiar; no value where it abstains."""
        probabilities = prediction.probabilities or {}
        if self._names is None:
            self._names = list(probabilities)
            columns = [f"probability_{name}" for name in self._names]
            judged = ["unfamiliarity", "p_value", "abstained", "reason"]
            self._writer.writerow(["path", prediction.target, "low", "high", *columns, "sd", *judged])
        value = prediction.value
        shown = ";".join(map(str, value)) if isinstance(value, list) else value
        low, high = prediction.interval or ("", "")
        said = [shown, low, high, *(probabilities[name] for name in self._names), prediction.sd]
        if prediction.abstained and not self._force:
            said = [""] * len(said)
        self._writer.writerow(
            [
                prediction.path,
                *said,
                prediction.unfamiliarity,
                prediction.p_value,
                str(prediction.abstained).lower(),
                prediction.reason,
            ]
        )
