"""A zoo as models see it: samples, targets, groups; and the same zoo in another gauge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.familiarity import Familiarity
from lorascope.predict.model import Inputs, Model, Sample, Structure
from lorascope.predict.targets import is_missing
from lorascope.symmetry import gauged, random_gauge
from lorascope.zoo import Zoo
from lorascope.zoo.store import Row
from lorascope.zoo.verification import Defect

Advance = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The usable adapters of a zoo.

    Args:
        samples: how to read each, and its hyperparameters.
        labels: label column → its values, in the order of the samples.
        groups: what must not straddle a split.
        splits: ``train``, ``validation`` or ``test`` for each sample.
        hyperparameters: the names of the declared hyperparameters.
        digest: a hash of the ids, weights, configurations and labels of the adapters.
        damaged: adapters of the zoo that were left out since they are damaged (:mod:`lorascope.predict.soundness`).
    """

    samples: tuple[Sample, ...]
    labels: Mapping[str, Sequence[Any]]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    ids: tuple[str, ...]
    hyperparameters: tuple[str, ...]
    digest: str
    damaged: tuple[Defect, ...] = ()
    _inputs: dict[Any, Inputs] = field(default_factory=dict[Any, Inputs], repr=False)
    _familiarities: dict[Any, Familiarity] = field(default_factory=dict[Any, Familiarity], repr=False)

    @classmethod
    def of(cls, zoo: Zoo | str | Path) -> Dataset:
        """The dataset of a zoo: every adapter that was trained and could be read when the zoo was made.

        Nothing is read yet; :func:`lorascope.predict.soundness.open_dataset` looks at each adapter first.
        """
        zoo = zoo if isinstance(zoo, Zoo) else Zoo.open(zoo)
        rows = zoo.rows()
        names = tuple(zoo.hyperparameters())
        samples = tuple(Sample(_reader(zoo, row), {name: row[name] for name in names}) for row in rows)
        content = "\n".join(
            f"{row['id']} {row['sha256']} {row.get('config_sha256')} {[row[name] for name in zoo.labels()]}"
            for row in rows
        )
        return cls(
            samples,
            {name: [row[name] for row in rows] for name in zoo.labels()},
            tuple(str(row["group"]) for row in rows),
            tuple(row["split"] for row in rows),
            tuple(str(row["id"]) for row in rows),
            names,
            blake2b(content.encode(), digest_size=16).hexdigest(),
        )

    def __len__(self) -> int:
        return len(self.samples)

    def where(self, *splits: str) -> NDArray[np.int64]:
        """The indices of the samples in these splits."""
        return np.flatnonzero([split in splits for split in self.splits])

    def values(self, target: str) -> Sequence[Any]:
        """The values of a label column; ``log:NAME`` are the natural logarithms of those of NAME.

        Raises:
            PredictorError: where the zoo has no such label, or a value has no logarithm.
        """
        if target.startswith(LOGARITHM) and target not in self.labels:
            return [_logarithm(value, target) for value in self.values(target.removeprefix(LOGARITHM))]
        if target not in self.labels:
            import difflib

            near = difflib.get_close_matches(target, self.labels, n=1)
            raise PredictorError(
                "the zoo has no such label",
                key=target,
                expected=f"one of {', '.join(self.labels) or 'no labels at all'}",
                hint="a hyperparameter is known before training and cannot be a target"
                if target in self.hyperparameters
                else (f"did you mean {near[0]!r}?" if near else None),
            )
        return self.labels[target]

    def structure(self, indices: Sequence[int] | NDArray[np.int64]) -> Structure:
        """All sites that any of these samples has, in the order of first occurrence, and the largest rank, 1 at least.

        Raises:
            PredictorError: where there are none, or two of them have a site in different shapes.
        """
        if not len(indices):
            raise PredictorError("there are no adapters to learn from", found="an empty training split")
        sites: dict[str, tuple[int, int]] = {}
        rank = 1
        for index in indices:
            adapter = self.samples[index].read()
            for name, update in adapter.items():
                if sites.setdefault(name, update.shape) != update.shape:
                    raise PredictorError(
                        "two adapters of the zoo have a site in different shapes",
                        file=adapter.provenance.path,
                        key=name,
                        expected=list(sites[name]),
                        found=list(update.shape),
                        hint="adapters of two bases are two zoos",
                    )
                rank = max(rank, update.rank)
        return Structure(sites, rank, self.hyperparameters)

    def inputs(
        self,
        model: Model,
        structure: Structure,
        advance: Advance | None = None,
        *,
        indices: NDArray[np.int64] | None = None,
    ) -> Inputs:
        """The inputs of these samples (by default of all) for a model, computed once per model and structure."""
        key = (model, tuple(structure.sites.items()), structure.rank, None if indices is None else indices.tobytes())
        if key not in self._inputs:
            samples = self.samples if indices is None else [self.samples[int(i)] for i in indices]
            self._inputs[key] = model.inputs(samples, structure, advance)
        return self._inputs[key]

    def familiarity(self, structure: Structure, indices: NDArray[np.int64]) -> Familiarity:
        """What these adapters look like, computed once for all targets and models that they serve."""
        key = (tuple(structure.sites.items()), structure.rank, indices.tobytes())
        if key not in self._familiarities:
            samples = [self.samples[int(i)] for i in indices]
            groups = [self.groups[int(i)] for i in indices]
            self._familiarities[key] = Familiarity.fit(samples, groups, structure)
        return self._familiarities[key]

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """These samples alone."""
        pick = [int(i) for i in indices]
        return replace(
            self,
            samples=tuple(self.samples[i] for i in pick),
            labels={name: [values[i] for i in pick] for name, values in self.labels.items()},
            groups=tuple(self.groups[i] for i in pick),
            splits=tuple(self.splits[i] for i in pick),
            ids=tuple(self.ids[i] for i in pick),
            _inputs={},
            _familiarities={},
        )

    def without(self, damaged: Sequence[Defect]) -> Dataset:
        """The same samples, with a record of those that were left out."""
        return replace(self, damaged=tuple(damaged), _inputs={})

    def in_random_gauge(self, *, condition: float = 100.0, seed: int = 0, dtype: DTypeLike = np.float32) -> Dataset:
        """The same finetunes, every site of every adapter in a random gauge of this condition number.

        The factors are computed in float64 and stored in ``dtype``, as a file would hold them.
        """
        samples = tuple(
            sample._replace(read=_in_gauge(sample.read, condition, seed, name, dtype))
            for sample, name in zip(self.samples, self.ids, strict=True)
        )
        return replace(self, samples=samples, _inputs={}, _familiarities={})


LOGARITHM = "log:"
"""Before the name of a label: its natural logarithm is meant."""


def _logarithm(value: Any, target: str) -> float | None:
    if is_missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise PredictorError("a value has no logarithm", key=target, expected="positive numbers", found=value)
    return float(np.log(value))


def rows_of(inputs: Inputs, indices: NDArray[np.int64]) -> Inputs:
    """These rows of every array."""
    return {name: array[indices] for name, array in inputs.items()}


def _reader(zoo: Zoo, row: Row) -> Callable[[], Adapter]:
    return lambda: zoo.read(row)


def _in_gauge(
    read_one: Callable[[], Adapter], condition: float, seed: int, name: str, dtype: DTypeLike
) -> Callable[[], Adapter]:
    digest = blake2b(name.encode(), digest_size=8).digest()

    def turned() -> Adapter:
        rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        return gauged(read_one(), lambda rank: random_gauge(rank, condition=condition, rng=rng), dtype=dtype)

    return turned
