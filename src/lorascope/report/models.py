"""The family of models as text and as JSON."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.family import Family
from lorascope.features import FEATURES
from lorascope.predict.kernel import KERNELS
from lorascope.predict.model import DEFAULT_MODEL, Model


def model_as_dict(model: type[Model]) -> dict[str, Any]:
    """What a model is and declares, with its options and their defaults."""
    fields: Any = dataclasses.fields(model)  # type: ignore[arg-type]  # members are dataclasses
    return {
        "name": model.name,
        "formula": model.formula,
        "reference": model.reference,
        "invariance": model.invariance,
        "rank_policy": model.rank_policy,
        "options": {
            field.name: list(field.default) if isinstance(field.default, tuple) else field.default for field in fields
        },
        "is_default": model.name == DEFAULT_MODEL,
    }


def models_as_text(models: Iterable[type[Model]], console: Console) -> None:
    """Print which models there are."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("model", "formula", "invariant to", "ranks", "reference"):
        table.add_column(name, overflow="fold", no_wrap=name == "model")
    for model in models:
        star = " *" if model.name == DEFAULT_MODEL else ""
        table.add_row(model.name + star, model.formula, model.invariance, model.rank_policy, model.reference)
    console.print(table)
    console.print("\n* is fitted where no model is named. blind: judges by hyperparameters and never sees the weights.")
    console.print("`lorascope models NAME` lists its options, `lorascope bench ZOO` compares models.")


def model_as_text(model: type[Model], console: Console) -> None:
    """Print one model: what its file says, what it declares, its options and their defaults."""
    about = model_as_dict(model)
    module = inspect.getmodule(model)
    console.print(Text(inspect.cleandoc((module and module.__doc__) or model.__doc__ or "")), soft_wrap=True)
    console.print()
    for title, key in (
        ("model", "name"),
        ("formula", "formula"),
        ("invariant to", "invariance"),
        ("ranks", "rank_policy"),
        ("reference", "reference"),
    ):
        console.print(Text.assemble((f"{title:<13}", "dim"), str(about[key])), soft_wrap=True)
    options = about["options"]
    console.print(Text.assemble((f"{'options':<13}", "dim"), "" if options else "none"))
    for name, default in options.items():
        shown = ",".join(default) if isinstance(default, list) else str(default).lower()
        console.print(f"  --option {name}={shown}", soft_wrap=True)
    for name in options.keys() & FAMILIES.keys():
        console.print()
        console.print(_family_table(name))


FAMILIES: dict[str, Family[Any]] = {"kernels": KERNELS, "features": FEATURES}
"""Options that are names of a family's members."""


def _family_table(name: str) -> Table:
    """What the members compute, of what they see and what they cost at a site, as far as they say."""
    members = list(FAMILIES[name])
    has_cost = all(hasattr(member, "cost") for member in members)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for title in (name, "formula", "sees", *(["cost per site"] if has_cost else []), "reference"):
        table.add_column(title, overflow="fold", no_wrap=title == name)
    for member in members:
        costs = [f"O({member.cost})"] if has_cost else []
        table.add_row(member.name, member.formula, ", ".join(sorted(member.sees)), *costs, member.reference)
    return table
