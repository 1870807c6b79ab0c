"""Small models and helpers of the tests of the bench."""

from dataclasses import dataclass
from typing import ClassVar

from lorascope.predict import MODELS
from lorascope.predict.models.ridge import Ridge


def small(name="ridge"):
    return {"ridge": MODELS["ridge"](size=4), "mlp": MODELS["mlp"](epochs=3)}[name]


@dataclass(frozen=True)
class Counting(Ridge):
    """A ridge that says how often it is fitted."""

    name: ClassVar[str] = "counting"
    fits: ClassVar[list[int]] = []

    def fit(self, *arguments, seed):
        self.fits.append(seed)
        return super().fit(*arguments, seed=seed)


@dataclass(frozen=True)
class Breaking(Ridge):
    """A model of somebody else's that raises what it likes."""

    name: ClassVar[str] = "breaking"

    def fit(self, *arguments, seed):
        raise RuntimeError("no such device")


def rows(table):
    return {row.label: row for row in table.rows}
