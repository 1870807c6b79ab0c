"""B-LoRA: what one adapter learned of content with what another learned of style, by the blocks of SDXL they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.checks import check_two
from lorascope.merge.method import Base, Parts, Product, concatenated


@dataclass(frozen=True)
class BLora(Base):
    """The first adapter at the sites of content, the second at those of style, nothing (ΔW = 0) at all others.

    By default each weight is 1; they scale content and style.

    Args:
        content: shell patterns of sites; by default SDXL's up_blocks.0.attentions.0, under both of its names.
        style: those of style; by default up_blocks.0.attentions.1.
    """

    content: tuple[str, ...] = ("*up_blocks.0.attentions.0.*", "*output_blocks.0.1.*")
    style: tuple[str, ...] = ("*up_blocks.0.attentions.1.*", "*output_blocks.1.1.*")

    name: ClassVar[str] = "b-lora"
    formula: ClassVar[str] = "w_1 ΔW_1 at sites of content, w_2 ΔW_2 at sites of style, else 0"
    reference: ClassVar[str] = "B-LoRA, Frenkel et al. (arXiv 2403.14572)"
    is_experimental: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = False
    is_idempotent: ClassVar[bool] = False

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def check(self, count: int) -> None:
        """Two: content, then style."""
        check_two(self.name, count)

    def check_sites(self, sites: Sequence[str]) -> None:
        """Each role has a site, and no site has both."""
        for role, patterns in (("content", self.content), ("style", self.style)):
            if not any(_fits(site, patterns) for site in sites):
                raise LorascopeError(
                    f"no site is one of {role}",
                    key=role,
                    expected=f"a site that fits {' or '.join(patterns) or 'a pattern'}",
                    found=f"{len(sites)} sites such as {sites[0]}",
                    hint=f"--option {role}=PATTERN,… says which are",
                )
        if both := [site for site in sites if _fits(site, self.content) and _fits(site, self.style)]:
            raise LorascopeError("a site is one of content and of style", key=both[0], expected="either, or neither")

    def __call__(self, parts: Parts) -> Product:
        """The update of one of the two, or none."""
        roles = np.array([_fits(parts.site, self.content), _fits(parts.site, self.style)])
        return concatenated(parts.pairs, np.where(roles, parts.weights, 0.0))


def _fits(site: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(site, pattern) for pattern in patterns)


METHOD = BLora
