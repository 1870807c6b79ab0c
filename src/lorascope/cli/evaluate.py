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
            max=1e6,  # beyond, factors in float32 are no longer the same finetune
            help="Put every adapter into a random gauge of this condition number first (the same finetunes).",
        ),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="A file of `lorascope zoo split --out`.  [default: the split of the zoo]")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave damaged adapters out, and count them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a predictor on a split of a zoo.

    Metrics are the mean and spread over its members. A damaged adapter is an error that names it, unless those are to
    be left out; adapters without a value of the label are left out and counted.
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.errors import PredictorError
    from lorascope.predict import Dataset, Predictor
    from lorascope.predict.predictor import usable
    from lorascope.predict.soundness import open_dataset
    from lorascope.report.damaged import left_out
    from lorascope.report.numbers import be, counted, number_as_text
    from lorascope.zoo import Zoo

    names = {"all": ("train", "validation", "test")}.get(split, (split,))
    if split not in ("test", "validation", "train", "all"):
        raise PredictorError("unknown split", expected="test, validation, train or all", found=split)
    loaded = Predictor.load(predictor)
    opened = Zoo.open(zoo, splits=splits)
    Dataset.of(opened).values(loaded.target.name)  # a label that there is not is said before all adapters are looked at
    with progress("looking at adapters", len(opened)) as looked:
        dataset = open_dataset(opened, within=names, skip_damaged=skip_damaged, advance=looked)
    chosen = dataset.subset(usable(dataset.values(loaded.target.name), range(len(dataset))))
    unlabelled = len(dataset) - len(chosen)
    if gauge is not None:
        chosen = chosen.in_random_gauge(condition=gauge)
    with progress("reading adapters", len(chosen)) as read:
        result = loaded.evaluate_adapters(chosen.samples, chosen.values(loaded.target.name), chosen.groups, read)
    if as_json:
        counted = {"unlabelled": unlabelled, "damaged": len(dataset.damaged)}
        paths = [defect.path for defect in dataset.damaged]
        given = {"split": split, "gauge": gauge}
        print_json({**result.as_dict(), **given, "left_out": counted, "damaged": paths})
        return
    from rich.table import Table

    table = Table(title=f"{result.model} predicts {result.target} ({result.task}), n = {result.n} ({split})")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("sd over seeds", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name, *(number_as_text(value[part], 4) for part in ("mean", "sd")))
    screen = console()
    screen.print(table)
    if gauge is not None:
        screen.print(f"every adapter was put into a random gauge of condition number {gauge:g} first.")
    for name, reason in result.undefined.items():
        screen.print(f"{name} is not defined: {reason}.")
    of_these = counted(result.n, "adapter")
    if result.seen:
        screen.print(f"{result.seen} of {of_these} {be(result.seen)} of groups that the predictor was fitted on.")
    if result.abstained:
        unlike = f"{result.abstained} of {of_these} {be(result.abstained)} unlike those of training"
        screen.print(f"{unlike}: `lorascope predict` abstains from them, here they are measured like all others.")
    for line in left_out(unlabelled, dataset.damaged, result.target):
        screen.print(line, soft_wrap=True)
