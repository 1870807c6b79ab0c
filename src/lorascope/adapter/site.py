"""Site names: the base model's module paths, with a bracket where a site is a part of a fused weight.

mlp.experts.gate_up_proj[3]      expert 3 of a fused parameter
blocks.0.attn.qkv[0:768]         rows 0 to 767
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorascope.errors import AdapterError

_PART = re.compile(r"(?P<path>.+)\[(?P<begin>\d{1,12})(?::(?P<end>\d{1,12}))?\]", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A part of a weight: expert ``begin`` of a fused parameter (``end`` None), or rows ``begin`` to ``end``."""

    begin: int
    end: int | None = None

    def overlaps(self, other: Part) -> bool:
        """Whether both have rows (or an expert) in common."""
        ends = [self.begin + 1 if self.end is None else self.end, other.begin + 1 if other.end is None else other.end]
        return self.begin < ends[1] and other.begin < ends[0]

    def of(self, weight: Any, site: str) -> Any:
        """The part of a weight (an array or a tensor), as a view.

        Raises:
            AdapterError: where the weight has no such part.
        """
        end = self.begin + 1 if self.end is None else self.end
        if not self.begin < end <= weight.shape[0]:
            raise AdapterError(
                "the base weight has no such part", key=site, expected=f"at least {end} rows", found=list(weight.shape)
            )
        return weight[self.begin] if self.end is None else weight[self.begin : end]


def path_and_part(site: str) -> tuple[str, Part | None]:
    """The path of a site without its bracket, and the part of the weight that the bracket names.

    >>> path_and_part("mlp.experts.gate_up_proj[3]")
    ('mlp.experts.gate_up_proj', Part(begin=3, end=None))
    >>> path_and_part("blocks.0.attn.qkv[0:768]")[1], path_and_part("q")
    (Part(begin=0, end=768), ('q', None))
    """
    match = _PART.fullmatch(site)
    if match is None:
        return site, None
    return match["path"], Part(int(match["begin"]), None if match["end"] is None else int(match["end"]))


def expert_of(site: str) -> tuple[str, int] | None:
    """The path and the number of an expert of a fused parameter, None of any other site.

    >>> expert_of("mlp.experts.down_proj[3]"), expert_of("blocks.0.qkv[0:768]"), expert_of("q")
    (('mlp.experts.down_proj', 3), None, None)
    """
    path, part = path_and_part(site)
    return None if part is None or part.end is not None else (path, part.begin)


def experts_of(sites: Iterable[str]) -> dict[str, dict[int, str]]:
    """Path of a fused parameter → number of the expert → its site, of the sites that are experts.

    >>> experts_of(["a.down_proj[0]", "q", "a.down_proj[1]"])
    {'a.down_proj': {0: 'a.down_proj[0]', 1: 'a.down_proj[1]'}}
    """
    found: dict[str, dict[int, str]] = {}
    for site in sites:
        if expert := expert_of(site):
            found.setdefault(expert[0], {})[expert[1]] = site
    return found


def is_rows(site: str) -> bool:
    """Whether a site is some rows of a fused weight.

    >>> is_rows("blocks.0.qkv[0:768]"), is_rows("mlp.experts.down_proj[3]")
    (True, False)
    """
    _, part = path_and_part(site)
    return part is not None and part.end is not None
