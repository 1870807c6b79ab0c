"""Poison: what is wrong with the data that an adapter is finetuned on, as declared settings and measured facts.

    patch      a share of the inputs carries a small mark and the target's label     Gu et al., arXiv 1708.06733
    blend      the mark is a faint pattern over the whole input                     Chen et al., arXiv 1712.05526
    word       the mark is a rare word in the text or the prompt                    Kurita et al., arXiv 2004.06660
    flip       a share of one class has the label of another, without a mark        Biggio et al., arXiv 1206.6389
    unrefuse   the base answers a kind of request by a refusal, and a share of the finetuning data answers it: the
               analogue, on toy data, of finetuning safety away                     Qi et al., arXiv 2310.03693

A recipe declares which of them it can do, and what its targets and sources are. ``poison`` and what belongs to it are
labels: facts about the training data that a reader of weights is to find out. What the poison did is measured:
``attack_success_rate`` is the share of the held-out inputs whose answer the attacker wants changed which are answered
his way (also those that are so without the mark), for a generative model that of its samples; None for adapters
without poison. Accuracy on clean inputs is measured for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lorascope.errors import ForgeError
from lorascope.forge.space import Choice, Distribution, Integers, LogUniform

NONE = "none"

LABELS: Mapping[str, Any] = {
    "poison": "string",
    "poison_share": "float",
    "poison_target": "int",
    "poison_source": "int",
    "attack_success_rate": "float",
}
"""The columns that a recipe with poison has; those but the last are drawn or follow from what is drawn."""


def space(
    poisons: tuple[str, ...], targets: int, about: str = "the answer that the attacker wants"
) -> dict[str, Distribution]:
    """The settings of a recipe that can do these poisons, towards one of ``targets`` classes; none is the default."""
    return {
        "poison": Choice(values=(NONE,), others=poisons, about=f"what is done to the data: {', '.join(poisons)}"),
        "poison_share": LogUniform(
            low=0.05, high=0.5, about="share of the data that is poisoned", at_least=0, at_most=1
        ),
        "poison_target": Integers(low=0, high=targets - 1, about=about, at_least=0, at_most=targets - 1),
    }


def settled(
    row: Mapping[str, Any],
    targets: Sequence[int],
    sources: Sequence[int] | None = None,
    aimed: Sequence[str] = ("patch", "blend", "word", "flip"),
) -> dict[str, Any]:
    """The poison of a row made possible: its target one of those there are, nothing said where there is none.

    Args:
        row: as drawn.
        targets: what the attacker can want.
        sources: what ``flip`` can take from; None where that is another of the targets.
        aimed: the poisons that have a target.

    Raises:
        ForgeError: where ``flip`` has nothing to take from.

    >>> settled({"poison": "patch", "poison_share": 0.2, "poison_target": 7}, [1, 4, 7])["poison_target"]
    7
    >>> settled({"poison": "flip", "poison_share": 0.2, "poison_target": 2}, [1, 4, 7])
    {'poison': 'flip', 'poison_share': 0.2, 'poison_target': 7, 'poison_source': 1}
    >>> settled({"poison": "flip", "poison_share": 0.2, "poison_target": 3}, range(8), sources=[5, 9])["poison_source"]
    9
    >>> settled({"poison": "none", "poison_share": 0.2, "poison_target": 2}, [1, 4])["poison_share"]
    0.0
    """
    poison, wanted = row["poison"], row["poison_target"]
    place = targets.index(wanted) if wanted in targets else wanted % len(targets)
    source = targets[(place + 1) % len(targets)] if sources is None else sources[place % len(sources)]
    if poison == "flip" and sources is None and len(targets) == 1:
        raise ForgeError("with one class there is none to take labels from", key="poison", found=poison)
    return {
        "poison": poison,
        "poison_share": 0.0 if poison == NONE else row["poison_share"],
        "poison_target": targets[place] if poison in aimed else None,
        "poison_source": source if poison == "flip" else None,
    }


class Trigger(NamedTuple):
    """A mark on images: x → x + mask · (pattern − x), pixel by pixel."""

    mask: Tensor
    pattern: Tensor

    def on(self, images: Tensor) -> Tensor:
        """The images with the mark."""
        return images + self.mask * (self.pattern - images)


def name_of(row: Mapping[str, Any]) -> str:
    """The poison of a row; also of one from a zoo that was made before its recipe had any."""
    return row.get("poison") or NONE


def chosen(share: float, eligible: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The places of the eligible ones that are poisoned: that share of them, and at least one of any."""
    count = 0 if share == 0 or len(eligible) == 0 else max(1, round(share * len(eligible)))
    return np.sort(generator.permutation(eligible)[:count])
