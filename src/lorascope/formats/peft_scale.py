"""The scale of a site under a PEFT LoRA configuration.

    scale = alpha / rank,   with ``use_rslora`` alpha / √rank

``rank_pattern`` and ``alpha_pattern`` map regular expressions to values for the sites that match; the first match
wins. Source: ``get_pattern_key`` in https://github.com/huggingface/peft, src/peft/utils/other.py, and
``LoraLayer.update_layer`` in src/peft/tuners/lora/layer.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.errors import AdapterError
from lorascope.formats.config_file import checked_alpha, checked_rank, flag, mapping, positive_integer
from lorascope.formats.name_patterns import Budget, NamePatterns
from lorascope.formats.pairs import Scale

PEFT_ALPHA = 8.0
"""``lora_alpha`` of PEFT where a configuration does not state it."""

PEFT_RANK = 8
"""``r`` of PEFT where a configuration does not state it."""


@dataclass(frozen=True)
class _Patterns:
    """Regular expressions → values, as PEFT matches them: the first that matches the end of the site name."""

    table: NamePatterns
    values: tuple[Any, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], key: str, budget: Budget) -> _Patterns:
        entries = mapping(config, key)
        return cls(NamePatterns(entries, key, budget=budget), tuple(entries.values()))

    def find(self, site: str) -> Any:
        index = self.table.find(site)
        return None if index is None else self.values[index]


_asked: dict[str, tuple[Mapping[str, Any], NamePatterns]] = {}
"""Field → the configuration that was asked last, and its pattern: it is asked once for each site."""


def is_full_match(config: Mapping[str, Any], key: str, site: str) -> bool:
    """Whether the regular expression ``config[key]`` matches the whole name of a site.

    >>> is_full_match({"feedforward_modules": r".*\\.fc[12]"}, "feedforward_modules", "layers.0.fc1")
    True

    Raises:
        AdapterError: where it is none, or too complex.
    """
    asked = _asked.get(key)
    if asked is None or asked[0] is not config:  # the work that is allowed is that of one file
        asked = config, NamePatterns([config[key]], key, is_whole=True)
        _asked[key] = asked
    return asked[1].find(site) is not None


@dataclass(frozen=True)
class PeftScale:
    """The rule that gives each site its scale.

    >>> rule = PeftScale.of({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}})
    >>> rule("model.layers.0.q_proj", 4).scale, rule("model.layers.0.v_proj", 8).scale
    (4.0, 2.0)
    """

    rank: int | None
    alpha: float
    is_alpha_stated: bool
    is_rslora: bool
    ranks: _Patterns
    alphas: _Patterns

    @classmethod
    def of(cls, config: Mapping[str, Any], alpha_key: str = "lora_alpha", *, budget: Budget | None = None) -> PeftScale:
        """The rule of a configuration; booleans are no integers and alpha must be finite.

        Args:
            config: the parsed configuration.
            alpha_key: the field of alpha, which LoHa and LoKr call ``alpha``.
            budget: the work that patterns may make, where the file has several configurations.

        Raises:
            AdapterError: naming the field that is not what it must be.
        """
        stated, budget = config.get(alpha_key), budget or Budget()
        return cls(
            rank=positive_integer(config, "r", None),
            alpha=PEFT_ALPHA if stated is None else checked_alpha(stated, alpha_key),
            is_alpha_stated=stated is not None,
            is_rslora=alpha_key == "lora_alpha" and flag(config, "use_rslora"),  # a field of LORA alone
            ranks=_Patterns.of(config, "rank_pattern", budget),
            alphas=_Patterns.of(config, "alpha_pattern", budget),
        )

    def stated_rank(self, site: str) -> int | None:
        """The rank that the configuration states for ``site``, None where it states none."""
        found = self.ranks.find(site)
        return self.rank if found is None else checked_rank(found, "rank_pattern")

    def __call__(self, site: str, rank: int) -> Scale:
        """The scale of ``site``, whose tensors have ``rank``.

        Raises:
            AdapterError: where the configuration states another rank.
        """
        stated = self.stated_rank(site)
        if stated is not None and stated != rank:
            raise AdapterError(
                "the rank of the tensors is not the one that the configuration states",
                key=site,
                expected=stated,
                found=rank,
            )
        found = self.alphas.find(site)
        alpha = self.alpha if found is None else checked_alpha(found, "alpha_pattern")
        divisor = math.sqrt(rank) if self.is_rslora else rank
        return Scale(alpha / divisor, alpha, is_assumed=found is None and not self.is_alpha_stated)
