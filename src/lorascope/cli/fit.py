"""``lorascope fit``: a zoo, a target and a model to a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

UNMEASURED = (
    "all adapters are of one group, so none could be held back: the network was stopped by its training loss, is not "
    "measured, gives probabilities that are not calibrated, and no intervals"
)


def fit(
    zoo: Annotated[Path, typer.Argument(help="A zoo, from `forge` or `zoo import`.")],
    target: Annotated[str, typer.Option(help="The label to predict, or log:LABEL; `lorascope zoo info` lists them.")],
    out: Annotated[Path, typer.Option(help="The folder for the predictor.")],
    model: Annotated[
        str | None, typer.Option(help="`lorascope models` lists them and says which is the default.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="regression, binary, multi-label or multi-class; found from the column."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many members to fit, one per seed.")] = 3,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the model.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="A file of `lorascope zoo split --out`.  [default: the split of the zoo]")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave damaged adapters out, and count them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit a predictor of a label on the training part of a zoo.

    The test part is never touched. A damaged adapter is an error that names it, unless those are to be left out;
    adapters without a value of the label are left out and counted.
    """
    from lorascope.cli.options import with_options
    from lorascope.cli.output import console, print_json, progress
    from lorascope.predict import MODELS, Dataset, fit_predictor
    from lorascope.predict.model import DEFAULT_MODEL
    from lorascope.predict.soundness import open_dataset
    from lorascope.predict.store import check_writable
    from lorascope.report.damaged import left_out
    from lorascope.report.numbers import counted, number_as_text
    from lorascope.zoo import Zoo

    name = model or DEFAULT_MODEL
    chosen = with_options(MODELS[name], option or [])
    check_writable(out)
    opened = Zoo.open(zoo, splits=splits)
    Dataset.of(opened).values(target)  # a label that there is not is said before all adapters are looked at
    with progress("looking at adapters", len(opened)) as looked:
        dataset = open_dataset(opened, within=("train", "validation"), skip_damaged=skip_damaged, advance=looked)
    with progress("reading adapters", len(dataset)) as read, progress("fitting", seeds) as fitted:
        predictor = fit_predictor(dataset, target, chosen, seeds=range(seeds), task=task, advance=read, done=fitted)
    predictor.save(out)
    facts = predictor.facts
    if as_json:
        print_json(
            {
                "schema_version": 2,
                "path": str(out),
                "target": target,
                "task": predictor.target.task,
                "model": name,
                "n": facts["samples"],
                "left_out": facts["left_out"],
                "damaged": [defect.path for defect in dataset.damaged],
                "seeds": seeds,
                "metrics": facts["metrics"],
                "undefined": facts["undefined"],
            }
        )
        return
    screen = console()
    screen.print(
        f"{name} predicts {target} ({predictor.target.task}), fitted on {counted(facts['samples'], 'adapter')}, "
        f"{counted(seeds, 'seed')}"
    )
    held = "left-out and validation samples of the first member"
    measured = "  ".join(f"{name} {number_as_text(value, 3)}" for name, value in facts["metrics"].items())
    screen.print(f"  {measured}  ({held})" if measured else f"  {UNMEASURED}", soft_wrap=True)
    for name, reason in facts["undefined"].items():
        screen.print(f"  {name} is not defined: {reason}", soft_wrap=True)
    for line in left_out(facts["left_out"]["unlabelled"], dataset.damaged, target):
        screen.print(f"  {line}", soft_wrap=True)
    screen.print(f"written to {out}\nnext: lorascope evaluate {out} {zoo}", soft_wrap=True)
