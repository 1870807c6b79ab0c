"""``lorascope fit``: a zoo, a target and a model to a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fit(
    zoo: Annotated[Path, typer.Argument(help="A zoo, from `forge` or `zoo import`.")],
    target: Annotated[str, typer.Option(help="The label column to predict; `lorascope zoo info` lists them.")],
    out: Annotated[Path, typer.Option(help="The folder for the predictor.")],
    model: Annotated[
        str, typer.Option(help="ridge, gram, tokens, probes, glnet, delta-kernel, svd, mlp or hyperparameters.")
    ] = "ridge",
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit a predictor of a label on the training part of a zoo; the test part is never touched."""
    from lorascope.cli.options import with_options
    from lorascope.cli.output import console, print_json, progress
    from lorascope.predict import MODELS, Dataset, fit_predictor
    from lorascope.predict.store import check_writable
    from lorascope.zoo import Zoo

    chosen = with_options(MODELS[model], option or [])
    check_writable(out)
    dataset = Dataset.of(Zoo.open(zoo, splits=splits))
    dataset.values(target)
    with progress("reading adapters", len(dataset)) as read, progress("fitting", seeds) as fitted:
        predictor = fit_predictor(dataset, target, chosen, seeds=range(seeds), task=task, advance=read, done=fitted)
    predictor.save(out)
    facts = predictor.facts
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "path": str(out),
                "target": target,
                "task": predictor.target.task,
                "model": model,
                "n": facts["samples"],
                "seeds": seeds,
                "metrics": facts["metrics"],
            }
        )
        return
    screen = console()
    screen.print(
        f"{model} predicts {target} ({predictor.target.task}), fitted on {facts['samples']} adapters, {seeds} seeds"
    )
    held = "left-out and validation samples of the first member"
    screen.print("  " + "  ".join(f"{name} {value:.3f}" for name, value in facts["metrics"].items()) + f"  ({held})")
    screen.print(f"written to {out}\nnext: lorascope evaluate {out} {zoo}", soft_wrap=True)
