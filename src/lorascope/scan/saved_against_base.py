"""Tensors that an adapter saved whole against the weights of its base: what ``bake`` would refuse to put there.

Names and shapes are asked of the headers of the base; whether a head is its embedding is asked of config.json alone.
Names that are no model's own (token rows, unknown keys) have notes of the reader, and nothing is said of them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lorascope.adapter import Adapter
from lorascope.adapter.saved import Placement, Unplaced, placed, saved_paths
from lorascope.conversion.tied_heads import tied_heads
from lorascope.errors import AdapterError
from lorascope.formats.checkpoint import Checkpoint, is_addable
from lorascope.scan.finding import Finding, explained

_OTHER_BASE = "is this the base that the adapter was made for?"


def saved_findings(adapter: Adapter, base: Checkpoint, weights: Mapping[str, str]) -> Iterator[Finding]:
    """The findings about the saved tensors.

    Args:
        adapter: whose leftovers they are.
        base: the model.
        weights: site → the name of its weight in the base; where there is none, it is another base altogether.
    """
    if not weights:
        return
    try:
        placement = placed(adapter.leftovers, weights, base.tensors, is_addable)
    except AdapterError as error:
        yield Finding("base-ambiguous", "error", explained(error), error.key, error.hint)
        return
    missing: list[Unplaced] = []
    for one in placement.unplaced:
        if one.why != "missing":
            yield _misfit(adapter, base, one)
        elif one.path.endswith((".weight", ".bias")) and not _is_bias_of_none(base, one.path):
            missing.append(one)
    if missing:
        names = ", ".join(one.key[:120] for one in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        hints = [hint for one in missing if (hint := base.hint_of_head(one.path)) is not None]
        text = f"the base has no place for what the adapter saved whole: {names}{more}"
        yield Finding("base-missing", "error", text, hint=hints[0] if hints else _OTHER_BASE)
    yield from _tied(adapter, base, weights, placement)


def saved_biases_of_none(adapter: Adapter, base: Checkpoint) -> Iterator[str]:
    """The layers whose bias the adapter saved whole, while the base has the layer without one."""
    try:
        paths = list(saved_paths(adapter.leftovers))
    except AdapterError:  # two that differ, which is a finding of its own
        return
    yield from (path.removesuffix(".bias") for path in paths if _is_bias_of_none(base, path))


def _is_bias_of_none(base: Checkpoint, path: str) -> bool:
    layer = path.removesuffix(".bias")
    return layer not in ("", path) and base.has(layer) and base.bias_of(layer) is None


def _misfit(adapter: Adapter, base: Checkpoint, one: Unplaced) -> Finding:
    saved, there = adapter.leftovers[one.key], base.tensors[one.names[0]]
    if one.why == "several":
        text = f"several tensors of the base fit the saved tensor {one.key[:200]}: {', '.join(one.names[:3])}"
        return Finding("base-ambiguous", "error", text, hint=_OTHER_BASE)
    if one.why == "shape":
        text = f"the saved tensor {one.key[:200]} has shape {list(saved.shape)}, the base has {list(there.shape)}"
        return Finding("base-shape", "error", text, hint=_OTHER_BASE)
    text = f"the saved tensor {one.key[:200]} is {saved.dtype.name}, the base has {there.dtype.name} there"
    return Finding("base-quantised", "warning", text, hint="bake into the base that is not quantised")


def _tied(adapter: Adapter, base: Checkpoint, weights: Mapping[str, str], placement: Placement) -> Iterator[Finding]:
    if not base.is_head_tied:
        return
    replaced = {name: adapter.leftovers[key] for name, key in placement.found.items()}
    try:
        tied_heads(base, set(weights.values()), replaced)
    except AdapterError as error:
        if error.key in replaced:
            yield Finding("base-tied", "error", explained(error), error.key, error.hint)
