"""Tensors that an adapter saved whole, and whose place in a base they take: heads, norms, biases.

    base_model.model.classifier.weight                  classifier.weight       a module saved whole
    base_model.model.q.base_layer.bias                  q.bias                  a bias beside a LoRA, bias="all"
    base_model.model.classifier.modules_to_save.bias    classifier.bias         a bias of a module saved whole, again
    base_model.model.pooler.modules_to_save.default.dense.bias                  the same, of a layer in that module
    base_model.model.classifier.original_module.bias    none                    the same bias before training

A saved tensor follows the sites: what the base's names have in front of those of the sites, its names have in front of
those of the saved tensors.

Source: https://github.com/huggingface/peft, src/peft/utils/save_and_load.py (``get_peft_model_state_dict``),
src/peft/utils/other.py (``ModulesToSaveWrapper``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.site import path_and_part
from lorascope.adapter.widening import is_floating
from lorascope.errors import AdapterError

PREFIX = "base_model.model."

_SAVED = "modules_to_save"
_BEFORE = "original_module"


@dataclass(frozen=True)
class Unplaced:
    """A saved tensor that takes no place in the base.

    Args:
        key: of the tensor in the adapter.
        path: under which it was looked for.
        why: whether the base has no such tensor, several, one of another shape, or one of the two holds no plain
            floating-point numbers.
        names: the tensors of the base that have that name.
    """

    key: str
    path: str
    why: Literal["missing", "several", "shape", "numbers"]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where the saved tensors go.

    Args:
        found: name in the base → key in the adapter.
        unplaced: those that have no place.
    """

    found: Mapping[str, str]
    unplaced: tuple[Unplaced, ...] = ()


def saved_paths(saved: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Path in the model → key, without what training wrapped around it and what it kept from before.

    Raises:
        AdapterError: where two tensors for one path differ.

    >>> ones = np.ones(2)
    >>> tensors = {"head.bias": ones, "head.modules_to_save.bias": ones, "head.original_module.bias": 0 * ones}
    >>> saved_paths(tensors), saved_paths({"own.original_module.bias": ones})
    ({'head.bias': 'head.bias'}, {'own.original_module.bias': 'own.original_module.bias'})
    """
    found: dict[str, str] = {}
    before: list[str] = []
    for key in sorted(saved, key=lambda key: _SAVED in key.split(".")):  # stable: the module itself first
        parts = _bare(key).split(".")
        if _BEFORE in parts[:-1]:
            before.append(key)
        else:
            _take(found, _without_wrapper(parts, found), key, saved)
    for key in before:
        path = _bare(key)
        if ".".join(part for part in path.split(".") if part != _BEFORE) not in found:
            _take(found, path, key, saved)
    return found


def _without_wrapper(parts: list[str], found: Mapping[str, str]) -> str:
    """The path of a tensor in a module saved whole; the name of the adapter is left in it where layers follow."""
    if _SAVED not in parts[:-1]:
        return ".".join(parts)
    at = parts.index(_SAVED)
    nameless, named = (".".join(parts[:at] + parts[at + skipped :]) for skipped in (1, 2))
    is_named = named in found or (nameless not in found and parts[at + 1] == "default")
    return named if at + 2 < len(parts) and is_named else nameless


def _bare(key: str) -> str:
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")


def _take(found: dict[str, str], path: str, key: str, saved: Mapping[str, NDArray[Any]]) -> None:
    other = found.setdefault(path, key)
    if other != key and not np.array_equal(saved[other], saved[key]):
        raise AdapterError(
            "two saved tensors of the adapter differ and have one place in the base",
            key=path,
            expected="one tensor, or the same numbers in both",
            found=f"{other} and {key}",
            hint="leave one of them in the file",
        )


def placed(
    saved: Mapping[str, NDArray[Any]],
    weights: Mapping[str, str],
    tensors: Mapping[str, Any],
    is_addable: Callable[[Any], bool],
) -> Placement:
    """Where the saved tensors of an adapter go in a base.

    Args:
        saved: key → tensor, the adapter's leftovers.
        weights: site → the name of its weight in the base, of the sites that the base has.
        tensors: name → tensor of the base, of which shapes and dtypes are asked.
        is_addable: whether a tensor of the base holds plain floating-point numbers.

    Raises:
        AdapterError: where two tensors for one place differ.

    >>> base = {"model.q.weight": np.ones((2, 2)), "model.head.weight": np.ones((2, 2))}
    >>> placed({"head.weight": np.ones((2, 2))}, {"q": "model.q.weight"}, base, is_floating).found
    {'model.head.weight': 'head.weight'}
    """
    found: dict[str, str] = {}
    unplaced: list[Unplaced] = []
    prefixes = _prefixes(weights)
    for path, key in saved_paths(saved).items():
        candidates = {added + path.removeprefix(removed) for removed, added in prefixes if path.startswith(removed)}
        names = tuple(sorted(candidates.intersection(tensors)))
        names = (path,) if path in names else names
        if len(names) != 1:
            unplaced.append(Unplaced(key, path, "several" if names else "missing", names))
        elif tuple(tensors[names[0]].shape) != saved[key].shape:
            unplaced.append(Unplaced(key, path, "shape", names))
        elif not (is_floating(saved[key]) and is_addable(tensors[names[0]])):
            unplaced.append(Unplaced(key, path, "numbers", names))
        else:
            _take(found, names[0], key, saved)
    return Placement(found, tuple(unplaced))


def refusal(unplaced: Unplaced, saved: Mapping[str, NDArray[Any]], tensors: Mapping[str, Any], of: str) -> AdapterError:
    """Why a saved tensor cannot be put into a base."""
    expected = {
        "missing": f"a tensor {unplaced.path[:200]} in the {of}",
        "several": f"one such tensor in the {of}, which has {', '.join(unplaced.names[:3])}",
    }
    name = unplaced.names[0] if unplaced.names else ""
    tensor = saved[unplaced.key]
    return AdapterError(
        f"a saved tensor of the adapter has no place in the {of}",
        key=unplaced.key,
        expected=expected.get(unplaced.why) or f"{tensors[name].dtype} of shape {list(tensors[name].shape)}",
        found=f"{tensor.dtype.name} of shape {list(tensor.shape)}",
    )


def _prefixes(weights: Mapping[str, str]) -> set[tuple[str, str]]:
    """What the base's names have in front instead of what the adapter's have."""
    found: set[tuple[str, str]] = set()
    for site, weight in weights.items():
        path, _ = path_and_part(site)
        name = weight.removesuffix(".weight")
        if name.endswith(path):
            found.add(("", name[: len(name) - len(path)]))
        elif path.endswith(name):
            found.add((path[: len(path) - len(name)], ""))
    return found
