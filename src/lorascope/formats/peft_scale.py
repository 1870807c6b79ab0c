"""The scale of a site under a PEFT LoRA configuration.

    scale = alpha / rank,   with ``use_rslora`` alpha / √rank

``rank_pattern`` and ``alpha_pattern`` map regular expressions to values for the sites that match; the first match
wins. Source: ``get_pattern_key`` in https://github.com/huggingface/peft, src/peft/utils/other.py, and
``LoraLayer.update_layer`` in src/peft/tuners/lora/layer.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.errors import AdapterError
from lorascope.formats.config_file import checked_alpha, checked_rank, flag, mapping, positive_integer
from lorascope.formats.pairs import Scale

PEFT_ALPHA = 8.0
"""``lora_alpha`` of PEFT where a configuration does not state it."""

PEFT_RANK = 8
"""``r`` of PEFT where a configuration does not state it."""

_MAX_PATTERN = 512
_MAX_REPEATS = 3
_MAX_STEPS = 1e8
_ESCAPED = re.compile(r"\\[^1-9]", re.DOTALL)
_REPEAT = re.compile(r"[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]|\\[1-9]")


@dataclass(frozen=True)
class _Patterns:
    """Regular expressions → values, as PEFT matches them: ``(.*\\.)?(KEY)$`` from the start of the site name."""

    entries: tuple[tuple[re.Pattern[str], int, Any], ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], key: str) -> _Patterns:
        entries = mapping(config, key).items()
        return cls(tuple((*_compiled(pattern, key), value) for pattern, value in entries))

    def find(self, site: str) -> Any:
        for pattern, repeats, value in self.entries:
            _check_length(site, pattern.pattern, repeats)
            if pattern.match(site):
                return value
        return None


def is_full_match(pattern: str, site: str, key: str) -> bool:
    """Whether a regular expression of the configuration matches the whole name of a site.

    >>> is_full_match(r".*\\.fc[12]", "layers.0.fc1", "feedforward_modules")
    True

    Raises:
        AdapterError: where it is none, or could match for ever.
    """
    _, repeats = _compiled(pattern, key)
    _check_length(site, pattern, repeats)
    return re.fullmatch(pattern, site) is not None


def _check_length(site: str, pattern: str, repeats: int) -> None:
    if len(site) ** (repeats + 1) > _MAX_STEPS:
        raise AdapterError(
            "a pattern is too complex to be matched safely with a site name this long",
            key=site[:200],
            found=ascii(pattern)[:120],
        )


def _compiled(pattern: str, key: str) -> tuple[re.Pattern[str], int]:
    # the configuration is not trusted: nested or many repeats can make matching take for ever
    bare = _ESCAPED.sub("x", pattern)
    repeats = len(_REPEAT.findall(bare))
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or _REPEATED_GROUP.search(bare):
        raise AdapterError(
            "a pattern is too complex to be matched safely",
            key=key,
            expected=f"at most {_MAX_PATTERN} characters, {_MAX_REPEATS} repeats and no repeated group",
            found=ascii(pattern)[:120],
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$"), repeats
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError("a pattern is no regular expression", key=key, found=ascii(pattern)[:120]) from error


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
    def of(cls, config: Mapping[str, Any], alpha_key: str = "lora_alpha") -> PeftScale:
        """The rule of a configuration; booleans are no integers and alpha must be finite.

        Args:
            config: the parsed configuration.
            alpha_key: the field of alpha, which LoHa and LoKr call ``alpha``.

        Raises:
            AdapterError: naming the field that is not what it must be.
        """
        stated = config.get(alpha_key)
        return cls(
            rank=positive_integer(config, "r", None),
            alpha=PEFT_ALPHA if stated is None else checked_alpha(stated, alpha_key),
            is_alpha_stated=stated is not None,
            is_rslora=flag(config, "use_rslora"),
            ranks=_Patterns.of(config, "rank_pattern"),
            alphas=_Patterns.of(config, "alpha_pattern"),
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
