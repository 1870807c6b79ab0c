"""The rows of a table: the models that were asked for, and the baselines that every table has.

hyperparameters    what the recipe says, without a look at the weights
norms              the norm of each site alone
shuffled           the default model, taught with labels permuted among groups: what it scores has leaked
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorascope.errors import PredictorError
from lorascope.predict.model import DEFAULT_MODEL, MODELS, Model

HYPERPARAMETERS, NORMS, SHUFFLED = "hyperparameters", "norms", "shuffled"


@dataclass(frozen=True)
class Contender:
    """A row: ``label`` in the table, the model with its options, and whether its labels are shuffled."""

    label: str
    model: Model
    role: Literal["model", "baseline"] = "model"
    is_shuffled: bool = False


def contenders(models: Mapping[str, Model]) -> list[Contender]:
    """The models under their labels and then the baselines that are not among them.

    Raises:
        PredictorError: where a model is called as the shuffled baseline.
    """
    if SHUFFLED in models:
        raise PredictorError("the label is that of a baseline", key=SHUFFLED, hint="call the model otherwise")
    default: Any = MODELS[DEFAULT_MODEL]
    chosen = models.get(DEFAULT_MODEL, default())
    baselines = {HYPERPARAMETERS: _made(HYPERPARAMETERS), NORMS: _made(NORMS)}
    rows = [Contender(label, model) for label, model in models.items() if label not in baselines]
    rows += [Contender(label, models.get(label, model), "baseline") for label, model in baselines.items()]
    return [*rows, Contender(SHUFFLED, chosen, "baseline", is_shuffled=True)]


def _made(name: str) -> Model:
    kind: Any = MODELS[name]
    return kind()
