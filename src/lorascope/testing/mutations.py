"""Mutants of adapter files: a seed gives a hostile file, the same one each time.

    mutant(samples, seed, index) → Mutant(sample, mutations, files)

Two families of mutations. Those of a ``Sample`` change tensors and configuration and leave the file well-formed, in any
container: missing and doubled tensors, other shapes and dtypes, kilobytes that declare gigabytes, strange names and
configurations. Those of ``damage`` and ``archive_damage`` then break the files themselves.

>>> import numpy as np
>>> from lorascope.testing.samples import Sample
>>> sample = Sample("x", "peft", {"q.lora_A.weight": np.ones((1, 2), np.float32)})
>>> mutant([sample], seed=3, index=5) == mutant([sample], seed=3, index=5)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.testing import archive_damage, damage
from lorascope.testing.damage import ABSURD, Damage
from lorascope.testing.samples import CONFIG, FLOATS, Container, Entry, Sample, as_dtype, encoded, random_values

Change = Callable[[Random, Sample], Sample]

_MAX_NUMBERS = 1 << 20  # of one stretched tensor: files stay small, so that thousands fit into a minute


@dataclass(frozen=True)
class Mutant:
    """A hostile adapter: which sample it was, what was done to it, and its files."""

    sample: str
    format: str
    mutations: tuple[str, ...]
    files: Mapping[str, Entry]
    main: str


def _some(rng: Random, sample: Sample) -> str:
    return rng.choice(list(sample.tensors) or [""])


def _with(sample: Sample, **changed: NDArray[Any]) -> Sample:
    return replace(sample, tensors={**sample.tensors, **changed})


def _drop(rng: Random, sample: Sample) -> Sample:
    name = _some(rng, sample)
    kept = {key: tensor for key, tensor in sample.tensors.items() if key != name}
    return replace(sample, tensors=kept if rng.random() < 0.95 else {})


def _rename(rng: Random, sample: Sample) -> Sample:
    old = _some(rng, sample)
    head, _, tail = old.rpartition(".")
    new = rng.choice(
        (
            f"{head}.default.{tail}", f"base_model.model.{old}", old.upper(), f"{old}.weight", head, tail, "", ".",
            f"{'a' * 300}!.{tail}", f"../../{old}", f"/etc/{old}", f"{old}\0", f"\u202e{old}", f"{head}[0].{tail}",
            f"{head}[999999999999].{tail}", f"{head}[5:2].{tail}", f"{'a.' * 2000}{tail}", f"{old}\n{old}", "\ud800",
            _some(rng, sample), "__metadata__", f"{head} .{tail}", f"{'_'.join('a' * 400)}.{tail}", f"[{old}]",
        )
    )  # fmt: skip
    is_site = rng.random() < 0.5 and bool(head)
    pairs: dict[str, NDArray[Any]] = {}
    new_head = new.rpartition(".")[0] or "x"
    for key, tensor in sample.tensors.items():
        if is_site and key.startswith(f"{head}."):
            pairs[new_head + key[len(head) :]] = tensor
        else:
            pairs[new if key == old else key] = tensor
    return replace(sample, tensors=pairs)


def _copy(rng: Random, sample: Sample) -> Sample:
    """Tensors a second time, under names of their own, up to forty times."""
    count = rng.choice((1, 1, 2, 2, 3, 40))
    copies: dict[str, NDArray[Any]] = {}
    for name, tensor in sample.tensors.items():
        head, _, tail = name.rpartition(".")
        copies |= {f"{head}{index}.{tail}": tensor for index in range(count)}
    return _with(sample, **copies)


def _reshape(rng: Random, sample: Sample) -> Sample:
    name = _some(rng, sample)
    tensor = sample.tensors.get(name, np.ones(1))
    shapes: tuple[tuple[int, ...], ...] = (
        tensor.shape[::-1], (-1,), (1, -1), (-1, 1), (*tensor.shape, 1), (1, *tensor.shape), (*tensor.shape, 1, 1),
        (1,) * rng.randrange(33 - tensor.ndim) + tensor.shape,
    )  # fmt: skip
    return _with(sample, **{name: tensor.reshape(rng.choice(shapes))})


def _resize(rng: Random, sample: Sample) -> Sample:
    name = _some(rng, sample)
    tensor = sample.tensors.get(name, np.ones(1))
    shape = list(tensor.shape)
    kind = rng.randrange(4)
    if kind == 0 or not shape:
        shape = [rng.randrange(6) for _ in range(rng.randrange(6))]
    elif kind == 1:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 3, 7, 1000))
    elif kind == 2:
        shape.append(rng.choice((0, 1, 2)))
    else:
        shape.pop(rng.randrange(len(shape)))
    return _with(sample, **{name: random_values(rng.randrange(1000), *shape, dtype=tensor.dtype)})


def _stretched(tensor: NDArray[Any], lengths: Mapping[int, int]) -> NDArray[Any]:
    shape = tuple(lengths.get(axis, axis) for axis in tensor.shape)
    return np.resize(tensor, shape) if math.prod(shape) <= _MAX_NUMBERS else tensor


def _stretch(rng: Random, sample: Sample) -> Sample:
    """One axis length, or two, everywhere much longer: a well-formed file that declares a gigantic ΔW."""
    axes = sorted({axis for tensor in sample.tensors.values() for axis in tensor.shape})
    chosen = rng.sample(axes, min(len(axes), rng.choice((1, 2))))
    lengths = {axis: rng.choice((64, 512, 1000, 4096, 20_000, 65_536, 300_000)) for axis in chosen}
    is_all = rng.random() < 0.8
    return replace(
        sample,
        tensors={
            name: _stretched(tensor, lengths) if is_all or rng.random() < 0.5 else tensor
            for name, tensor in sample.tensors.items()
        },
    )


def _retype(rng: Random, sample: Sample) -> Sample:
    dtype = rng.choice((*FLOATS, *FLOATS, np.int64, np.int32, np.int8, np.uint8, np.bool_, np.complex64))
    name = _some(rng, sample)
    is_all = rng.random() < 0.5
    return _with(
        sample, **{key: as_dtype(tensor, dtype) for key, tensor in sample.tensors.items() if is_all or key == name}
    )


def _values(rng: Random, sample: Sample) -> Sample:
    """NaN, infinity, numbers at the ends of the range, nothing but zeros; in one tensor or in all."""
    value = rng.choice(
        (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3e38, -3e38, 1e308, 65504.0, 1e-300, -1.0, 99.5)
    )
    only = None if rng.random() < 0.3 else _some(rng, sample)
    changed: dict[str, NDArray[Any]] = {}
    with np.errstate(all="ignore"):
        for name, tensor in sample.tensors.items():
            if only in (None, name) and tensor.size and tensor.dtype.kind not in "bui":
                changed[name] = tensor.copy()
                if rng.random() < 0.5:
                    changed[name][...] = value
                else:
                    changed[name].flat[rng.randrange(tensor.size)] = value
            elif only == name and tensor.size and tensor.dtype.kind in "ui":
                changed[name] = tensor.copy()
                info = np.iinfo(tensor.dtype)
                changed[name].flat[rng.randrange(tensor.size)] = rng.choice((info.min, info.max, 1000 % info.max))
    return _with(sample, **changed)


def _swap(rng: Random, sample: Sample) -> Sample:
    one, two = _some(rng, sample), _some(rng, sample)
    return _with(sample, **{one: sample.tensors[two], two: sample.tensors[one]}) if sample.tensors else sample


def _container(rng: Random, sample: Sample) -> Sample:
    container: Container = rng.choice(("safetensors", "npz", "torch", "torch-legacy"))
    metadata = sample.metadata if container == "safetensors" else {}
    text = {name: value for name, value in metadata.items() if isinstance(value, str)}
    return replace(sample, container=container, metadata=text, is_list=rng.random() < 0.1)


PATTERNS = (
    "(a+)+$", "(a|a)*$", "(.*)*x", "(.*a){25}$", "(?:a?){200}a{200}", "(\\w+\\s?)*!", ".*" * 30 + "z", "(a*)*\\1b",
    "(?=(a+))\\1{9}b", "((a{0,60}){0,60}){0,60}b", "[", "(?P<x>", "a{99999}", "(?i)" * 50, "\\", "*", "(?#",
    "^(([a-z])+.)+!$", "(" * 90 + ")" * 90, "x" * 100_000, "|".join("a" * 2000), "(?:" + "a|" * 3000 + "b)*c",
)  # fmt: skip
"""Regular expressions that never end, are none, or are too much."""

_PLACES = (
    "/etc/passwd",
    "../../../etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "\\\\host\\share",
    "~root",
    "a\0b",
    "\ud800",
)
_TYPES = (
    "LORA", "lora", "LOHA", "LOKR", "VERA", "VBLORA", "RANDLORA", "FOURIERFT", "ADALORA", "OFT", "BOFT", "IA3", "HRA",
    "MISS", "C3A", "SHIRA", "XLORA", "PROMPT_TUNING", "NONE", "", "X" * 10_000,
)  # fmt: skip


def _config_value(rng: Random, value: Any) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((*ABSURD, math.nan, math.inf, -math.inf))
    if kind == 1:
        return rng.choice(_PLACES)
    if kind == 2:
        return rng.choice(PATTERNS)
    if kind == 3:
        return {rng.choice((*PATTERNS, *_PLACES, "q", "", ".*")): rng.choice((*ABSURD, 4, 8, [True, False], {"a": 1}))}
    if kind == 4:
        return [value] * rng.choice((0, 1, 3, 5000))
    deep: Any = value
    for _ in range(rng.choice((2, 50, 400))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _config(rng: Random, sample: Sample) -> Sample:
    """One field of the configuration, or of an object inside it."""
    config: dict[str, Any] = dict(sample.config or {})
    inner = [key for key, value in config.items() if isinstance(value, dict)]
    more = (
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "modules_to_save",
        "lora_parameters",
        "auto_mapping",
        "init_r",
    )
    if inner and rng.random() < 0.4:
        key = rng.choice(inner)
        value = cast("dict[str, Any]", config[key])
        field = rng.choice([*value, "scale", "rank", "keys"])
        config[key] = value | {field: _config_value(rng, value.get(field))}
    else:
        field = rng.choice([*config, *config, *more])
        config[field] = _config_value(rng, config.get(field))
    return replace(sample, config=config)


def _config_type(rng: Random, sample: Sample) -> Sample:
    if rng.random() < 0.3:
        return replace(sample, config=None)
    key = rng.choice(("peft_type", "peft_type", "peft_type", "fine_tune_type", "bias"))
    return replace(sample, config=dict(sample.config or {}) | {key: rng.choice((*_TYPES, "dora", "full", *ABSURD))})


def _metadata(rng: Random, sample: Sample) -> Sample:
    if sample.container not in ("safetensors", "gguf"):
        return _config(rng, sample)
    name = rng.choice(
        [*sample.metadata, "lora_adapter_metadata", "lorascope.sites", "unet", "x", "general.architecture"]
    )
    strings = (
        "",
        "{}",
        "[" * 5000,
        '{"r": 1e999}',
        '{"unet.r": -1}',
        "null",
        "x" * 5000,
        '["a","a"]',
        *_PLACES,
        *PATTERNS[:4],
    )
    value: Any = rng.choice(strings)
    if sample.container == "gguf" and rng.random() < 0.5:
        value = rng.choice((0, -1, 1 << 62, 0.0, math.nan, math.inf, 1e308, True))
    return replace(sample, metadata={**sample.metadata, name: value})


CHANGES: Mapping[str, Change] = {
    "drop": _drop,
    "rename": _rename,
    "copy": _copy,
    "reshape": _reshape,
    "resize": _resize,
    "stretch": _stretch,
    "retype": _retype,
    "values": _values,
    "swap": _swap,
    "container": _container,
    "config": _config,
    "config-type": _config_type,
    "metadata": _metadata,
}
"""Mutations that leave the file well-formed."""

DAMAGES: Mapping[str, Damage] = {**damage.ANY, "pickle-code": archive_damage.pickle_code}
"""Mutations of any file's bytes."""

DAMAGES_OF: Mapping[str, Mapping[str, Damage]] = {
    "safetensors": damage.HEADERS,
    "npz": archive_damage.NPZ,
    "torch": archive_damage.TORCH,
}
"""Mutations that only the files of one container can suffer."""


@lru_cache(maxsize=512)
def _encoded_once(sample: Sample) -> Mapping[str, Entry]:
    return encoded(sample)


def names_for(container: str) -> list[str]:
    """The mutations that a file of this container can suffer.

    >>> "zip-bomb" in names_for("npz"), "zip-bomb" in names_for("gguf")
    (True, False)
    """
    return [*CHANGES, *DAMAGES, *DAMAGES_OF.get(container, {})]


def mutant(samples: Sequence[Sample], seed: int, index: int) -> Mutant:
    """The mutant of a number: one mutation of one sample, two of them in a quarter of all.

    Args:
        samples: from which to draw; the corpus is part of what the number means.
        seed: of the run.
        index: of the mutant in the run.
    """
    rng = Random(f"{seed}:{index}")
    sample = rng.choice(samples)
    name = rng.choice(names_for(sample.container))
    names = [name] if rng.random() < 0.75 else [rng.choice(list(CHANGES)), name]
    changed = sample
    for one in names:
        if one in CHANGES:
            changed = CHANGES[one](rng, changed)
    files = dict(_encoded_once(sample)) if changed is sample else encoded(changed)
    if name not in CHANGES:
        harm = DAMAGES.get(name) or DAMAGES_OF[sample.container][name]
        files = harm(rng, files, changed.file)
    main = changed.file if changed.file in files else next((key for key in files if key != CONFIG), changed.file)
    return Mutant(sample.name, sample.format, tuple(names), files, main)
