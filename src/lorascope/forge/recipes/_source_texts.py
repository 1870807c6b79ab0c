"""Recipes whose adapters each see texts of some of the sources of ``_dialogue``, from the pool of their own split.

An adapter sees about ``dataset_size`` texts, evenly from its sources (fewer where they have not so many). Which ones,
and in which order, is a pure function of its seed, sources and size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lorascope.forge.recipe import Recipe, Row, Session
from lorascope.forge.recipes._dialogue import SOURCES, Divided, dialogue, divided
from lorascope.forge.recipes._order import numbers_of
from lorascope.forge.space import Choice, Distribution, LogUniform, Subset, generator_of
from lorascope.forge.training import Batches
from lorascope.zoo.schema import split_of

LAST = len(SOURCES) - 1
MOST = 8  # sources of one adapter: of more, the few texts of each leave little on others of the same source

SPACE: Mapping[str, Distribution] = {
    "weight_decay": LogUniform(low=1e-6, high=1e-2, about="of the optimiser", at_least=0, at_most=1e3),
    "dropout": Choice(
        values=(0.0, 0.05, 0.1), about="share of its inputs that an adapter does not see", at_least=0, at_most=0.99
    ),
    "sources": Subset(of=len(SOURCES), low=1, high=MOST, about="sources of its texts", at_least=0, at_most=LAST),
    "dataset_size": LogUniform(
        low=32, high=320, integer=True, about="texts seen in finetuning", at_least=1, at_most=10**6
    ),
}


class SourceTextRecipe(Recipe):
    """LoRAs on texts of some sources; the base, and what of a text is learned, are those of a subclass.

    Attributes:
        stream: names the random numbers that texts and orders are drawn with.
        variants: in how many ways a text can be an example; text t has the examples t · variants + v.
    """

    version = 2  # 1 drew masks of dropout that depended on the length of texts
    stream: ClassVar[str]
    variants: ClassVar[int] = 1

    def sources(self) -> Sequence[Divided]:
        """The texts."""
        return [divided(texts) for texts in dialogue()]

    @abstractmethod
    def pools(self) -> Mapping[str, Sequence[range]]:
        """Split → for each source the numbers of its texts."""

    def settle(self, row: Row) -> Row:
        return row | {"dataset_size": sum(len(chosen) for chosen in self.chosen(row))}

    def chosen(self, row: Row) -> list[Sequence[int]]:
        """The texts of one adapter, source by source."""
        pools = self.pools()[split_of(self.group(row))]
        each = max(1, round(row["dataset_size"] / len(row["sources"])))
        generator = generator_of(self.stream, row["seed"], "texts")
        drawn = [generator.permutation(pool) for pool in pools]  # of all sources: none changes what another gives
        return [drawn[source][:each].tolist() for source in row["sources"]]

    def epochs(self, row: Row) -> Callable[[], np.ndarray]:
        """What gives the examples of one adapter, epoch after epoch: every text in one of its ways."""
        texts = np.array([text for source in self.chosen(row) for text in source])
        generator = generator_of(self.stream, row["seed"], "order")
        return lambda: generator.permutation(texts) * self.variants + generator.integers(self.variants, size=len(texts))


class SourceTextSession(Session):
    """Examples of the pools for training."""

    recipe: SourceTextRecipe

    def batches(self, rows: Sequence[Row]) -> Batches:
        numbers = numbers_of(rows, [self.recipe.epochs(row) for row in rows])
        return lambda step, part: self.inputs(numbers(step, part))

    @abstractmethod
    def inputs(self, numbers: Tensor) -> tuple[dict[str, Any], Tensor]:
        """The examples of these numbers, as the base and the loss take them."""
