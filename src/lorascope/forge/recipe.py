"""``Recipe``: what the forge needs to know to make a zoo: a base, a space to draw from, data, labels to measure."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lorascope.errors import MissingExtraError
from lorascope.forge.kinds import KINDS
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution, Hash, Integers, Text, generator_of, given
from lorascope.forge.training import Batches, Training

Row = dict[str, Any]


class Recipe(ABC):
    """How to make a zoo. A recipe is one module in ``recipes`` with an instance named ``RECIPE``.

    Attributes:
        name: as on the command line.
        cohort: how many adapters train together, unless another number is asked for.
        version: raised with every change that gives an adapter other bits; a zoo is extended by its own version alone.
        reference: the data and the idea.
        about: one line.
        kind: the kind of adapter that is trained unless another is asked for.
        sites: the layers that are adapted, where every base of the recipe has the same.
        space: what is drawn for each adapter; every entry can be fixed with ``--set``.
        options: what is the same for the whole zoo; every entry can be changed with ``--set``.
        packages: what it needs beyond the extra ``[learn]``, and the extra that brings each.
        labels: the columns that are labels, with their types; those also in ``space`` are drawn, not measured.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    cohort: ClassVar[int] = 32
    reference: ClassVar[str]
    about: ClassVar[str]
    kind: ClassVar[str]
    sites: ClassVar[Sequence[str]] = ()
    space: ClassVar[Mapping[str, Distribution]]
    options: ClassVar[Mapping[str, Distribution]]
    option_defaults: ClassVar[Mapping[str, Any]]
    packages: ClassVar[Mapping[str, str]] = {}
    labels: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def architecture(self, options: Mapping[str, Any]) -> nn.Module:
        """The base model with whatever weights, those that are found excepted."""

    @abstractmethod
    def pretrain(self, options: Mapping[str, Any]) -> nn.Module:
        """The base model with its weights, the same for the same options."""

    def sites_of(self, base: nn.Module) -> Sequence[str]:
        """The layers of this base that are adapted."""
        return self.sites

    def found(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """What names the part of the base that is found and not made: package, version, SHA-256; empty for none.

        A zoo keeps this in place of those weights, and ``architecture`` gives the base with them. ``model`` is the
        name under which the model is published, which the adapters then name as their base.

        Raises:
            MissingExtraError: where it is not installed; names the command that brings it.
        """
        return {}

    def made(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The weights of the base that are made, and that a zoo keeps: all but those that are found."""
        return base.state_dict()

    @abstractmethod
    def session(self, base: nn.Module) -> Session:
        """The data, loaded once for a process."""

    def check_packages(self) -> None:
        """See that what the recipe needs is installed, before anything is begun.

        Raises:
            MissingExtraError: naming the extra.
        """
        for package, extra in self.packages.items():
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError.of(package, extra, f"the recipe {self.name}")

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027  most recipes have nothing to look for
        """See that what the options name, such as a folder of data, is there, before anything is begun.

        Raises:
            ForgeError: naming what is missing and what to do.
        """

    def settle(self, row: Row) -> Row:
        """A drawn row made possible, such as a data set no larger than what there is."""
        return row

    def group(self, row: Row) -> str:
        """What an adapter shares data or a seed with others by: all of one group fall into the same split.

        A recipe whose adapters share a source, such as a font or a text, names that source here.
        """
        return f"{self.name}/{row['seed']}"

    def drawn(self, kind: str) -> dict[str, Distribution]:
        """What is drawn for each adapter: the recipe's own, what every training has, and the options of the kind."""
        return {
            **self.space,
            **{name: of for name, of in TRAINING.items() if name not in self.space},
            **KINDS[kind].options,
            **SEEDS,
        }

    def all_settings(self, kind: str) -> dict[str, Distribution]:
        """Everything that ``--set`` takes."""
        kinds = Choice(values=tuple(KINDS.names()), about="how the adapters change a layer")
        cohort = Choice(values=(self.cohort,), about="adapters that train together", at_least=1, at_most=4096)
        return {**self.drawn(kind), **self.options, **RUN, "kind": kinds, "cohort": cohort}

    def options_of(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's own options among the settings of a zoo."""
        return {name: settings[name] for name in self.options}

    def hyperparameters(self, kind: str) -> dict[str, Any]:
        """The columns that are hyperparameters, with their types."""
        return {name: of.type for name, of in self.drawn(kind).items() if name not in self.labels}

    def slot(self, row: Row, kind: str) -> Slot:
        """The adapter of a row, before training."""
        options = {name: row[name] for name in KINDS[kind].options}
        return Slot(row["rank"], row["alpha"], row["init_seed"], row["dropout"], options)

    def training(self, row: Row) -> Training:
        """How the adapter of a row is trained."""
        return Training(**{name: row[name] for name in ("learning_rate", "steps", *TRAINING) if name != "dropout"})

    def draw(self, zoo_seed: int, index: int, settings: Mapping[str, Any]) -> Row:
        """What adapter ``index`` of a zoo is trained with, the zoo's options included: a function of the arguments.

        Everything but the initialisation follows from the adapter's own ``seed`` and what is fixed, so adapters
        of one seed are siblings: the same data, another start.
        """
        seed = settings.get("seed")
        if seed is None:
            seed = SEEDS["seed"].draw(generator_of(self.name, zoo_seed, index, "seed"))
        row: Row = {}
        for name, drawn in self.drawn(settings.get("kind", self.kind)).items():
            if name not in SEEDS:
                stream = generator_of(self.name, seed, name)
                row[name] = given(settings[name], stream) if name in settings else drawn.draw(stream)
        init_key = "shared" if settings.get("init") == "shared" else index
        init_seed = settings.get("init_seed")
        if init_seed is None:
            init_seed = SEEDS["init_seed"].draw(generator_of(self.name, zoo_seed, init_key, "init_seed"))
        options = {name: settings.get(name, default) for name, default in self.option_defaults.items()}
        return self.settle(options | row | {"seed": seed, "init_seed": init_seed})


SEEDS: Mapping[str, Distribution] = {
    "seed": Hash(about="of the data and of all that is drawn", at_least=0, at_most=2**53),
    "init_seed": Hash(about="of the initialisation", at_least=0, at_most=2**53),
}

COMMON: Mapping[str, Distribution] = {
    "rank": Choice(values=(4,), about="rank of B · A", at_least=1, at_most=1024),
    "alpha": Choice(values=(8.0,), about="ΔW = alpha / rank · B · A", at_least=1e-6, at_most=1e6),
}

TRAINING: Mapping[str, Distribution] = {
    "weight_decay": Choice(values=(0.0,), about="of the optimiser", at_least=0, at_most=1e3),
    "optimiser": Choice(values=("adamw",), others=("sgd",), about="adamw or sgd"),
    "momentum": Choice(values=(0.0,), about="of sgd", at_least=0, at_most=1),
    "schedule": Choice(values=("constant",), others=("linear", "cosine"), about="of the learning rate"),
    "warmup": Choice(values=(0,), about="steps of linear increase before", at_least=0, at_most=10**7),
    "accumulate": Choice(values=(1,), about="parts of a step whose gradients are averaged", at_least=1, at_most=10**4),
    "dropout": Choice(
        values=(0.0,), about="share of its inputs that an adapter does not see", at_least=0, at_most=0.99
    ),
}
"""What every training has; a recipe that draws one of them names it in its space."""

RUN: Mapping[str, Choice] = {
    "init": Choice(values=("own", "shared"), about="initialisation: own, or shared by all adapters (it leaks)"),
    "precision": Choice(values=("float32",), others=("bfloat16",), about="of the products in training"),
    "fast": Choice(values=(0,), about="1: finished adapters leave the batch; equal to rounding", at_least=0, at_most=1),
    "device": Text(values=("cpu",), about="what trains: cpu, cuda (several are dealt out), cuda:1, mps, xpu"),
}
"""What is the same for a whole zoo, whatever the recipe; the first value is the default."""

STEPS = Integers(low=80, high=120, about="optimiser steps", at_least=0, at_most=10**7)


class Session(ABC):
    """A recipe at work in one process: its data, laid out for N adapters at a time."""

    @abstractmethod
    def batches(self, rows: Sequence[Row]) -> Batches:
        """The data of these adapters, step by step: each its own examples in its own order."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The training loss of each example, [N · b]."""

    @abstractmethod
    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        """The measured labels of each adapter; ``model`` maps a batch [N · b, …] with all adapters on.

        It takes its inputs from any device, and gives outputs on that of the base.
        """
