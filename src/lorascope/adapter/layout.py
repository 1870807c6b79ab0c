"""Which way round a base stores the weight of a linear site: [out, in], or [in, out] as GPT-2's Conv1D does.

No adapter file tells it for every site. PEFT states ``fan_in_fan_out`` once for all layers and follows the class of
each; of a fused parameter of experts it states nothing and follows ``is_transposed`` of the module. A square weight
fits either way, so that the wrong one would pass in silence. What tells, the strongest first:

    the shape                where only one way fits
    sites of the same kind   of the same adapter, where only one way fits them
    the base                 the class or flag of a module; the model type of a checkpoint, the biases in it
    a person                 who was asked
    the file                 where it states that the base stores [in, out]
    the name                 of a layer that is no Conv1D: [out, in]

Where none of them does, the update is in doubt, and nothing is added to the weight. A person is asked only where the
first three tell nothing: an answer that contradicts them, and that nothing needs, is refused.

Source: https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py (``Linear``, ``ParamWrapper``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


def fitting(update: Update, spot: Spot, given: Layout | None = None) -> dict[bool, Update]:
    """The ways in which an update can be meant and fits: ``is_transposed`` → the update so turned.

    Args:
        update: of the site.
        spot: what is known of the base there.
        given: what a person says of weights that fit either way.

    >>> import numpy as np
    >>> square = LowRank(np.ones((3, 1)), np.ones((1, 3)))
    >>> list(fitting(square, Spot((3, 3)))), list(fitting(square, Spot((3, 3), "conv1d")))
    ([False], [False, True])
    """
    found: dict[bool, Update] = {}
    for is_transposed in _meant(update, spot, given):
        turned = update if is_transposed == update.is_transposed else update.transposed(is_transposed)
        if spot.fits(turned.base_shape, is_transposed=is_transposed):
            found[is_transposed] = turned
    return found


def _meant(update: Update, spot: Spot, given: Layout | None) -> tuple[bool, ...]:
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
    # a plain layer is [out, in] unless a person says the contrary; where the file does, it may have meant other layers
    return both if spot.kind != "plain" or update.is_transposed or given == "in-out" else stated


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
        AdapterError: where an update does not fit its weight, nothing tells the layout of a site, or a full
            difference would have to be turned.
    """
    found = _settled(adapter, spots, given)
    updates, doubts = found.updates, found.doubts
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
    for site, update in updates.items():
        _check_full(site, update, spots[site], given)
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


def check_answer(
    given: Layout | None, asked: Iterable[tuple[Mapping[str, Update], Mapping[str, Spot]]], *, of: str = "base"
) -> None:
    """Check what a person says of the layout of a base against what is known of it without.

    Args:
        given: the answer, of which every adapter for that base makes use.
        asked: the adapters, each with what is known of the base at its sites.
        of: what the base is called in messages.

    Raises:
        AdapterError: where there is no such layout, where no site needs the answer and it contradicts what is known of
            one, or where a layer and a site of another kind would both follow it against what their names say.

    >>> import numpy as np
    >>> linear, update = Spot((2, 2), is_in_out=False), LowRank(np.ones((2, 1)), np.ones((1, 2)))
    >>> check_answer("out-in", [({"q": update}, {"q": linear})])
    >>> try:
    ...     check_answer("in-out", [({"q": update}, {"q": linear})])
    ... except AdapterError as error:
    ...     print(error.code)
    layout-contradicted
    """
    if given is None:
        return
    if given not in ("out-in", "in-out"):
        raise AdapterError("no such layout", key="layout", expected="out-in or in-out", found=ascii(given)[:80])
    answered: dict[Kind, str] = {}
    contradicted: list[str] = []
    for adapter, spots in asked:
        found = _settled(adapter, spots, given)
        answered |= {spots[site].kind: site for site in found.answered}
        contradicted += found.contradicted
    if contradicted and not answered:
        raise AdapterError(
            f"the layout given contradicts what is known of the {of}",
            key=contradicted[0],
            expected="in-out" if given == "out-in" else "out-in",
            found=f"{given}, at {len(contradicted)} such {'sites' if len(contradicted) > 1 else 'site'}",
            hint="leave it out: nothing has to be asked here",
            code="layout-contradicted",
        )
    if given == "in-out" and "plain" in answered and len(answered) > 1:
        other = next(site for kind, site in answered.items() if kind != "plain")
        raise AdapterError(
            f"one layout is given for layers of different kinds, which few models store alike: {other} and others",
            key=answered["plain"],
            expected="config.json of the base with its model_type, which tells the kinds apart",
            found="in-out for all",
            hint="bring in the sites of each kind by themselves, each with its layout",
            code="layout-unknown",
        )


def _check_full(site: str, update: Update, spot: Spot, given: Layout | None) -> None:
    """A full difference is in the layout of a linear layer, and is not turned."""
    if update.kind != "full" or update.is_transposed or spot.kind == "expert":
        return
    is_square = len(spot.shape) == 2 and spot.shape[0] == spot.shape[1] and update.layer == "linear"
    if spot.is_in_out or (spot.is_in_out is None and given == "in-out" and is_square):
        raise AdapterError("the base stores this weight as [in, out]", key=site, found=update.kind)


def doubtful(adapter: Mapping[str, Update], spots: Mapping[str, Spot]) -> list[str]:
    """The sites that fit either way round, where nothing tells which."""
    return _settled(adapter, spots, None).doubts


@dataclass
class _Settlement:
    """The updates that fit, turned as the base stores them, and the sites that something is to be said of.

    Args:
        updates: site → update.
        doubts: the sites that nothing tells of.
        answered: the sites whose update is another one without the answer of a person, or in doubt.
        contradicted: the sites of which something tells the contrary of the answer.
    """

    updates: dict[str, Update] = field(default_factory=dict[str, Update])
    doubts: list[str] = field(default_factory=list[str])
    answered: list[str] = field(default_factory=list[str])
    contradicted: list[str] = field(default_factory=list[str])


def _settled(adapter: Mapping[str, Update], spots: Mapping[str, Spot], given: Layout | None) -> _Settlement:
    ways = {site: fitting(update, spots[site], given) for site, update in adapter.items()}
    seen = {kind: _seen(kind, adapter, spots, ways) for kind in ("conv1d", "expert")}
    result = _Settlement()
    answer = None if given is None else given == "in-out"
    for site, fit in ways.items():
        update, spot = adapter[site], spots[site]
        told = next(iter(fit)) if len(fit) == 1 else None
        known = told if told is not None and _is_open(update, spot) else None
        if len(fit) > 1:
            known = _known(update, spot, seen.get(spot.kind))
            default = _default(update, spot)
            told = known if known is not None else answer if answer is not None else default
            result.doubts += [site] if told is None else []
            if known is None and told is not default:
                result.answered.append(site)
        if told is not None:
            result.updates[site] = fit[told]
        if answer is not None and known is not None and known is not answer:
            result.contradicted.append(site)
    return result


def _is_open(update: Update, spot: Spot) -> bool:
    """Whether the shape leaves open which way a weight is stored, and the update depends on it."""
    is_square = len(spot.shape) == 2 and spot.shape[0] == spot.shape[1]
    return is_square and _is_turnable(update) and not (isinstance(update, LowRank) and update.layout == "fixed")


def _known(update: Update, spot: Spot, seen: bool | None) -> bool | None:
    """Whether a base is known to store a weight that fits either way as [in, out]."""
    if seen is not None:
        return seen
    if isinstance(update, LowRank) and update.layout == "open":
        return spot.is_flagged
    if isinstance(update, LowRank) and update.layout == "unknown":
        return spot.is_flagged or None  # [in, out] whether the base was asked or not
    return None


def _default(update: Update, spot: Spot) -> bool | None:
    """How a weight that fits either way is taken where neither the base nor a person tells, None where it is not."""
    if isinstance(update, LowRank) and update.layout != "stated":
        return None
    return True if update.is_transposed else False if spot.kind == "plain" else None


def _seen(
    kind: Kind, adapter: Mapping[str, Update], spots: Mapping[str, Spot], ways: Mapping[str, Mapping[bool, Update]]
) -> bool | None:
    """How the base stores the other sites of a kind, where those that fit only one way all say the same."""
    found = {
        next(iter(ways[site]))
        for site, spot in spots.items()
        if spot.kind == kind and len(ways[site]) == 1 and len(_meant(adapter[site], spot, None)) == 2
    }
    return found.pop() if len(found) == 1 else None
