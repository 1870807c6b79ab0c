"""``Slot``: one adapter that is to be trained, before anything of it is random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorascope.errors import ForgeError


@dataclass(frozen=True)
class Slot:
    """What an adapter is before training.

    Args:
        rank: its rank.
        alpha: the kind makes its scale of it.
        init_seed: of the initialisation, and of all that is random in training apart from the data.
        dropout: share of the inputs of each site that the adapter does not see, drawn for each step.
        options: further parameters of the kind, by name; those not given are at the kind's defaults.
    """

    rank: int
    alpha: float
    init_seed: int
    dropout: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha > 0) or not 0 <= self.dropout < 1:
            raise ForgeError(
                "an adapter cannot be like this",
                expected="rank at least 1, alpha above 0, dropout at least 0 and below 1",
                found=f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}",
            )

    def seed_of(self, *purpose: object) -> int:
        """A seed of this adapter's own for one purpose, the same whatever is trained beside it."""
        key = "\0".join(map(str, ("slot", self.init_seed, *purpose)))
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
