"""Which way round a base stores the weight of a linear site: [out, in], or [in, out] as GPT-2's Conv1D does.

No adapter file tells it for every site. PEFT states ``fan_in_fan_out`` once for all layers and follows the class of
each; of a fused parameter of experts it states nothing and follows ``is_transposed`` of the module. A square weight
fits either way, so that the wrong one would pass in silence. What tells, the strongest first:

    the shape                where only one way fits
    a person                 who was asked
    sites of the same kind   of the same adapter, where only one way fits them
    the base                 the class or flag of a module; the model type of a checkpoint, the biases in it
    the file                 where it states that the base stores [in, out]

Where none of them does, the update is in doubt, and nothing is added to the weight.

Source: https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py (``Linear``, ``ParamWrapper``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorascope.adapter.low_rank import LowRank
from lorascope.adapter.update import Update
from lorascope.errors import AdapterError

Layout = Literal["out-in", "in-out"]
"""How a weight is stored."""

Kind = Literal["plain", "conv1d", "expert"]
"""What a site is, as far as its name tells: a layer, one that GPT-2 has as Conv1D, an expert of a fused parameter."""

CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""What transformers calls its layers of the class Conv1D; other models call linear layers so too."""

CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"},
)
"""The model types whose layers of these names are Conv1D: all that transformers 5.23 has."""

FLAGGED_EXPERTS = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
"""The model types whose experts modules have ``is_transposed`` true: all that transformers 5.23 has."""

UNFLAGGED_EXPERTS = frozenset({"llama4", "llama4_text"})
"""The model types that store experts as [in, out] and do not say so: PEFT takes these for [out, in]."""

EITHER_EXPERTS = frozenset({"qwen3_vl_moe", "qwen3_vl_moe_text"})
"""The model types whose checkpoints exist in both layouts: transformers turns them when it reads them."""

UNFLAGGED_CLASSES = frozenset({"Llama4TextExperts"})
"""The classes of their experts modules."""


@dataclass(frozen=True)
class Spot:
    """What is known of a base at a site.

    Args:
        shape: of the weight, or of the part of it that the site names, as the base stores it.
        kind: what the site is.
        is_in_out: whether the base stores it as [in, out], None where it does not tell.
        is_flagged: whether the experts module says ``is_transposed``, None where that is not known.
    """

    shape: tuple[int, ...]
    kind: Kind = "plain"
    is_in_out: bool | None = None
    is_flagged: bool | None = None

    def fits(self, base_shape: tuple[int, ...], *, is_transposed: bool = False) -> bool:
        """Whether an update for a weight of ``base_shape`` (−1: any) fits.

        A convolution may be given as a matrix, unless that is turned.
        """
        shapes = [self.shape]
        if len(self.shape) > 2 and not is_transposed:
            shapes.append((self.shape[0], math.prod(self.shape[1:])))
        return any(
            len(base_shape) == len(shape) and all(e in (-1, f) for e, f in zip(base_shape, shape, strict=True))
            for shape in shapes
        )


def fitting(update: Update, spot: Spot) -> dict[bool, Update]:
    """The ways in which an update can be meant and fits: ``is_transposed`` → the update so turned.

    >>> import numpy as np
    >>> square = LowRank(np.ones((3, 1)), np.ones((1, 3)))
    >>> list(fitting(square, Spot((3, 3)))), list(fitting(square, Spot((3, 3), "conv1d")))
    ([False], [False, True])
    """
    found: dict[bool, Update] = {}
    for is_transposed in _meant(update, spot):
        turned = update if is_transposed == update.is_transposed else update.transposed(is_transposed)
        if spot.fits(turned.base_shape, is_transposed=is_transposed):
            found[is_transposed] = turned
    return found


def _meant(update: Update, spot: Spot) -> tuple[bool, ...]:
    """The ways in which an update may be meant at a spot, whether they fit or not."""
    stated, both = (update.is_transposed,), (False, True)
    if not _is_turnable(update) or len(spot.shape) != 2:
        return stated
    layout = update.layout if isinstance(update, LowRank) else "stated"
    if layout == "fixed" or (spot.kind == "expert" and layout == "stated" and update.is_transposed):
        return stated
    if spot.kind == "expert" and layout != "stated":
        return both
    if spot.is_in_out is not None:
        return (spot.is_in_out,)
    # a plain layer is [out, in]; where the file says the contrary, it may have meant other layers alone
    return both if spot.kind != "plain" or update.is_transposed else stated


def _is_turnable(update: Update) -> bool:
    # a full difference is in the layout of the base that it was taken from
    return update.kind != "full" and update.layer == "linear" and not update.kernel


def settled(
    adapter: Mapping[str, Update],
    spots: Mapping[str, Spot],
    *,
    of: str = "base",
    given: Layout | None = None,
    file: object = None,
) -> dict[str, Update]:
    """The updates, each turned as the base stores its weight.

    Args:
        adapter: site → update.
        spots: site → what is known of the base there.
        of: what the base is called in messages.
        given: what a person says of the weights that fit either way.
        file: the adapter's file, for messages.

    Raises:
        AdapterError: where an update does not fit its weight, nothing tells the layout of a site, or there is no
            such layout as was given.
    """
    if given not in (None, "out-in", "in-out"):
        raise AdapterError("no such layout", key="layout", expected="out-in or in-out", found=ascii(given)[:80])
    updates, doubts = _settled(adapter, spots, given)
    for site, update in adapter.items():
        if site not in updates and site not in doubts:
            raise AdapterError(
                f"the update does not fit the weight of the {of}",
                file=file,
                key=site,
                expected=f"a weight of shape {list(update.base_shape)}",
                found=list(spots[site].shape),
                hint="is this the base that the adapter was made for?",
            )
    if not doubts:
        return updates
    raise AdapterError(
        "the weight fits either way round, and neither the adapter nor the base tells which way it is stored",
        file=file,
        key=doubts[0],
        expected="config.json of the base with its model_type, or an answer",
        found=f"{len(doubts)} such {'sites' if len(doubts) > 1 else 'site'}",
        hint="put config.json beside the base's weights, or say it: --layout out-in (torch.nn.Linear) or in-out "
        "(GPT-2's Conv1D, experts of GPT-OSS); layout= in Python",
        code="layout-unknown",
    )


def doubtful(adapter: Mapping[str, Update], spots: Mapping[str, Spot]) -> list[str]:
    """The sites that fit either way round, where nothing tells which."""
    return _settled(adapter, spots, None)[1]


def _settled(
    adapter: Mapping[str, Update], spots: Mapping[str, Spot], given: Layout | None
) -> tuple[dict[str, Update], list[str]]:
    """The updates that fit, turned as the base stores them, and the sites that nothing tells of."""
    ways = {site: fitting(update, spots[site]) for site, update in adapter.items()}
    seen = {kind: _seen(kind, adapter, spots, ways) for kind in ("conv1d", "expert")}
    updates, doubts = dict[str, Update](), list[str]()
    for site, fit in ways.items():
        told = next(iter(fit)) if len(fit) == 1 else None
        if len(fit) > 1:
            told = _told(adapter[site], spots[site], given, seen.get(spots[site].kind))
            doubts += [site] if told is None else []
        if told is not None:
            updates[site] = fit[told]
    return updates, doubts


def _told(update: Update, spot: Spot, given: Layout | None, seen: bool | None) -> bool | None:
    """Whether a base stores a weight that fits either way as [in, out], None where nothing tells."""
    if given is not None:
        return given == "in-out"
    if seen is not None:
        return seen
    if isinstance(update, LowRank) and update.layout == "open":
        return spot.is_flagged
    if isinstance(update, LowRank) and update.layout == "unknown":
        return spot.is_flagged or None  # [in, out] whether the base was asked or not
    return True if update.is_transposed else None


def _seen(
    kind: Kind, adapter: Mapping[str, Update], spots: Mapping[str, Spot], ways: Mapping[str, Mapping[bool, Update]]
) -> bool | None:
    """How the base stores the other sites of a kind, where those that fit only one way all say the same."""
    found = {
        next(iter(ways[site]))
        for site, spot in spots.items()
        if spot.kind == kind and len(ways[site]) == 1 and len(_meant(adapter[site], spot)) == 2
    }
    return found.pop() if len(found) == 1 else None
