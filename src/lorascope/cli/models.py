"""``lorascope models``: which models there are, and what each declares."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="One model, with all of its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List the models that `fit` and `bench` know.

    Told are formula, invariance, what they do with ranks, and options.
    """
    from lorascope.cli.output import console, print_json
    from lorascope.predict import MODELS
    from lorascope.report.models import model_as_dict, model_as_text, models_as_text

    members = list(MODELS) if name is None else [MODELS[name]]
    if as_json:
        print_json({"schema_version": 1, "models": [model_as_dict(one) for one in members]})
    elif name is None:
        models_as_text(members, console())
    else:
        model_as_text(members[0], console())
