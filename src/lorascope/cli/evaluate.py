"""``lorascope evaluate``: a predictor against the truth of a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictor: Annotated[Path, typer.Argument(help="A predictor, from `lorascope fit`.")],
    zoo: Annotated[Path, typer.Argument(help="A zoo that has the label.")],
    split: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    gauge: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Put every adapter into a random gauge of this condition number first (the same finetunes).",
        ),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="A file of `lorascope zoo split --out`.  [default: the split of the zoo]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a predictor on a split of a zoo: metrics as mean and spread over its members."""
    from lorascope.cli.output import console, print_json, progress
    from lorascope.errors import PredictorError
    from lorascope.predict import Dataset, Predictor
    from lorascope.predict.predictor import usable
    from lorascope.zoo import Zoo

    names = {"all": ("train", "validation", "test")}.get(split, (split,))
    if split not in ("test", "validation", "train", "all"):
        raise PredictorError("unknown split", expected="test, validation, train or all", found=split)
    loaded = Predictor.load(predictor)
    dataset = Dataset.of(Zoo.open(zoo, splits=splits))
    chosen = dataset.subset(usable(dataset.values(loaded.target.name), dataset.where(*names)))
    if gauge is not None:
        chosen = chosen.in_random_gauge(condition=gauge)
    with progress("reading adapters", len(chosen)) as read:
        inputs = loaded.model.inputs(chosen.samples, loaded.structure, read)
    result = loaded.evaluate(inputs, chosen.values(loaded.target.name), chosen.groups)
    if as_json:
        print_json(result.as_dict())
        return
    from rich.table import Table

    table = Table(title=f"{result.model} predicts {result.target} ({result.task}), n = {result.n} ({split})")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("sd over seeds", justify="right")
    for name, value in result.metrics.items():
        sd = value["sd"]
        table.add_row(name, f"{value['mean']:.4f}", "–" if sd != sd else f"{sd:.4f}")
    screen = console()
    screen.print(table)
    if result.seen:
        screen.print(f"{result.seen} of these {result.n} adapters are of groups that the predictor was fitted on.")
