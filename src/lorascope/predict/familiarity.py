"""Whether an adapter is like those that a predictor learned from: a score, a p-value, and what is strange about it.

Six parts, each a number t that grows with strangeness, from the statistics of the sites (``site_statistics``), each
standardised by its median and median absolute deviation over training adapters, z_s at site s:

    norm            |z| of the mean over sites of log ‖ΔW‖
    proportions     root mean square over sites of z of log ‖ΔW‖ less that mean
    spectra         mean of z of the spread of the spectrum: only flatter is strange, for a lower rank is none
    column spaces   −mean of z of tr(M ΔWΔWᵀ)
    row spaces      −mean of z of tr(M ΔWᵀΔW)
    sites           how many sites have no update

    score = log 10 + max over parts of (t − t₉₀) / e,     e = mean excess of t over its ninth decile t₉₀ in training

so that a score of x says: about as rare in that part as exp(−x), were its tail exponential. The p-value does not
rest on that: it is conformal (``conformal``), from scores of training adapters by references of the other nine tenths
of the groups. Everything is a function of ΔW alone, so neither the gauge, nor a padded rank, nor the format can move
it.

Source: Vovk (2015), cross-conformal predictors; Laxhammar & Falkman (2010), conformal anomaly detection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.blocks import BLOCK
from lorascope.predict.conformal import Conformal
from lorascope.predict.model import Inputs, Sample, Structure, ordered_sites, stacks_of
from lorascope.predict.site_statistics import SEED, SIZE, STATISTICS, Reduced, SiteStatistics, reduced_of
from lorascope.predict.tokens import height, sketched, tokens_of

Matrix = NDArray[np.float64]

ABSTAIN_BELOW = 0.01
"""The p-value below which a predictor abstains: the share of false alarms among adapters like those of training."""

PARTS = ("norm", "proportions", "spectra", "column spaces", "row spaces", "sites")
FOLDS = 10
KEPT_NUMBERS = 32_000_000
"""Up to 256 MB of reduced adapters are kept between the two passes of a fit; of more, the files are read again."""

LEAST_SPREAD = 0.05
"""Statistics are logarithms: differences of less than 5 % between adapters are never what is strange about one."""

LEAST_EXCESS = 0.1


class Judgement(NamedTuple):
    """Of one adapter: the score, its p-value, and what is strangest about it, in words."""

    unfamiliarity: float
    p_value: float
    reason: str

    @property
    def is_strange(self) -> bool:
        """Whether the p-value is below ``ABSTAIN_BELOW``."""
        return self.p_value < ABSTAIN_BELOW


class Reference(NamedTuple):
    """Medians and robust spreads of standardised statistics [S, 4] and of the mean log norm [2]; parts: t₉₀ and e."""

    centre: Matrix
    spread: Matrix
    total: Matrix
    decile: Matrix
    excess: Matrix

    @classmethod
    def of(cls, values: Matrix) -> Reference:
        """From the statistics of training adapters [n, S, 4]."""
        total, own = _own(values)
        centre, spread = _robust(own)
        mean, deviation = _robust(total)
        whole = cls(centre, spread, np.asarray([mean, deviation]), np.zeros(len(PARTS)), np.ones(len(PARTS)))
        t = whole.parts(values)
        decile = np.quantile(t, 0.9, axis=0)
        decile[-1] += 0.5  # sites are counted: as many as usual is not strange, one more is
        over = np.where(t > decile, t - decile, np.nan)
        excess = np.maximum(np.nan_to_num(_nanmean(over, 0)), LEAST_EXCESS)
        return whole._replace(decile=decile, excess=excess)

    def parts(self, values: Matrix) -> Matrix:
        """t of each part, [n, 6]; parts of which an adapter without any update has none are 0."""
        total, own = _own(values)
        z = np.nan_to_num((own - self.centre) / self.spread)  # an absent site is counted, not judged
        present = np.maximum(np.isfinite(values[..., 0]).sum(1), 1)
        means = z.sum(1) / present[:, None]
        return np.stack(
            [
                np.abs(np.nan_to_num((total - self.total[0]) / self.total[1])),
                np.sqrt((z[..., 0] ** 2).sum(1) / present),
                means[:, 1],
                -means[:, 2],
                -means[:, 3],
                np.isnan(values[..., 0]).sum(1).astype(np.float64),
            ],
            axis=1,
        )

    def scores(self, values: Matrix) -> tuple[Matrix, NDArray[np.int64]]:
        """The score [n] and the part that it comes from [n]."""
        t = (self.parts(values) - self.decile) / self.excess
        return math.log(10) + t.max(axis=1), t.argmax(axis=1)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What training adapters look like.

    ``statistics`` holds M of every site; ``reference`` how their statistics lie; ``conformal`` the scores of
    left-out training adapters; ``norms`` the smallest and the largest mean log norm and ``absent`` the largest
    number of absent sites among them.
    """

    structure: Structure
    statistics: SiteStatistics
    reference: Reference
    conformal: Conformal
    norms: tuple[float, float]
    absent: int

    @classmethod
    def fit(cls, samples: Sequence[Sample], groups: Sequence[str], structure: Structure) -> Familiarity:
        """From the training adapters and their groups; targets are not looked at.

        The adapters are read in blocks, twice where they are too many to be kept.
        """
        blocks = _Blocks(samples, structure)
        order = {group: place for place, group in enumerate(sorted(set(groups)))}
        count = min(FOLDS, len(order))
        folds = np.asarray([order[group] % count for group in groups])
        sums = _energies(blocks, folds, count)
        others = [[k for k in range(count) if k != fold or count == 1] for fold in range(count)]
        means = [_statistics(sums, chosen, structure.rank) for chosen in others]
        values = np.zeros((len(samples), len(structure.sites), len(STATISTICS)))
        for start, block in blocks:
            own = folds[start : start + len(block[0].log_norm)]
            for fold in set(own.tolist()):
                held = np.flatnonzero(own == fold)
                parts = [means[fold].of(_rows(reduced, held)) for reduced in block]
                values[start + held] = np.concatenate(parts, axis=1)
        scores = np.zeros(len(samples))
        for fold in range(count):
            held = folds == fold
            scores[held] = Reference.of(values[~held] if count > 1 else values).scores(values[held])[0]
        total = _own(values)[0]
        seen = total[np.isfinite(total)]
        return cls(
            structure,
            _statistics(sums, range(count), structure.rank),
            Reference.of(values),
            Conformal.of(scores, groups),
            (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0),
            int(np.isnan(values[..., 0]).sum(1).max()),
        )

    def judge(self, samples: Sequence[Sample]) -> list[Judgement]:
        """One judgement per adapter, in order."""
        return self.judge_tokens(tokens_of(samples, self.structure, size=SIZE, seed=SEED))

    def judge_tokens(self, inputs: Inputs) -> list[Judgement]:
        """From the tokens of size ``SIZE`` and seed ``SEED``, sides exact or not."""
        inputs = sketched(inputs, self.structure, size=SIZE, seed=SEED)
        stacks = list(stacks_of(self.structure).values())
        values = [self.statistics.of(reduced) for reduced in reduced_of(inputs, stacks)]
        joined = np.concatenate(values, axis=1)
        return self.judge_statistics(joined.reshape(len(joined), -1))

    def judge_statistics(self, columns: Matrix) -> list[Judgement]:
        """From the columns [n, S · 4] of ``statistics`` as a feature."""
        if not len(columns):
            return []
        values = columns.reshape(len(columns), -1, len(STATISTICS))
        scores, parts = self.reference.scores(values)
        p_values = self.conformal.p_values(scores)
        return [
            Judgement(float(score), float(p), self._reason(PARTS[part], row))
            for score, p, part, row in zip(scores, p_values, parts, values, strict=True)
        ]

    def _reason(self, part: str, row: Matrix) -> str:
        total, own = (array[0] for array in _own(row[None]))
        absent = int(np.isnan(row[:, 0]).sum())
        if part == "sites" or absent == len(row):
            return f"{absent} of {len(row)} sites without an update (at most {self.absent} in training)"
        if part == "norm":
            smallest, largest = self.norms
            if total > largest:
                return f"norm {math.exp(min(total - largest, 700)):.3g} times the largest in training"
            if total < smallest:
                return f"norm {math.exp(total - smallest):.3g} times the smallest in training"
            return "a norm that is rare in training"
        if part in ("column spaces", "row spaces"):
            return f"{part} unlike those of training: another base{' or initialisation' if part[0] == 'r' else ''}?"
        column = 0 if part == "proportions" else 1
        z = np.nan_to_num((own - self.reference.centre) / self.reference.spread)[:, column]
        site = ordered_sites(self.structure)[int(np.argmax(np.abs(z) if column == 0 else z))]
        what = "norms of the sites in other proportions than" if column == 0 else "spectra flatter than"
        return f"{what} in training, most at {site}"

    def state(self) -> dict[str, NDArray[Any]]:
        """As arrays for safetensors."""
        arrays = {
            **{name: np.asarray(array) for name, array in self.reference._asdict().items()},
            "scores": self.conformal.values,
            "shares": self.conformal.shares,
            "norms": np.asarray(self.norms),
            "absent": np.asarray(self.absent),
        }
        for place, name in enumerate(ordered_sites(self.structure)):
            arrays[f"left.{place}"] = self.statistics.left[name]
            arrays[f"right.{place}"] = self.statistics.right[name]
        return {name: np.array(array, np.float64, copy=True) for name, array in arrays.items()}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], structure: Structure) -> Familiarity:
        """From its arrays.

        Raises:
            ValueError: where they are not those of adapters of this structure.
        """
        names = ordered_sites(structure)
        left = {name: np.asarray(arrays[f"left.{place}"]) for place, name in enumerate(names)}
        right = {name: np.asarray(arrays[f"right.{place}"]) for place, name in enumerate(names)}
        for name, (out, in_) in structure.sites.items():
            if left[name].shape != (_rows_of(out),) * 2 or right[name].shape != (_rows_of(in_),) * 2:
                raise ValueError(f"the energies at {name} are not those of its shape")
        reference = Reference(*(np.asarray(arrays[name]) for name in Reference._fields))
        sites = (len(names), len(STATISTICS))
        found = [array.shape for array in reference]
        if found != [sites, sites, (2,), (len(PARTS),), (len(PARTS),)] or not (reference.spread > 0).all():
            raise ValueError(f"the reference of familiarity has impossible shapes: {found}")
        values, shares = np.asarray(arrays["scores"]), np.asarray(arrays["shares"])
        if values.ndim != 1 or values.shape != shares.shape:
            raise ValueError("scores and shares of familiarity differ in number")
        smallest, largest = (float(value) for value in arrays["norms"])
        return cls(
            structure,
            SiteStatistics(left, right, structure.rank),
            reference,
            Conformal(values, shares),
            (smallest, largest),
            int(arrays["absent"]),
        )


def _rows_of(n: int) -> int:
    """Rows of the sketch of a side of n."""
    return min(n, height(SIZE, n))


class _Blocks:
    """The reduced sites of all samples, block by block, with the place of the first: iterated more than once."""

    def __init__(self, samples: Sequence[Sample], structure: Structure) -> None:
        self._samples, self._structure = samples, structure
        width = sum(_rows_of(out) + _rows_of(in_) for out, in_ in structure.sites.values())
        self._are_kept = len(samples) * width * structure.rank <= KEPT_NUMBERS
        self._kept: list[tuple[int, list[Reduced]]] = []

    def __iter__(self) -> Iterator[tuple[int, list[Reduced]]]:
        yield from self._kept or self._read()

    def _read(self) -> Iterator[tuple[int, list[Reduced]]]:
        stacks = list(stacks_of(self._structure).values())
        for start in range(0, len(self._samples), BLOCK):
            samples = self._samples[start : start + BLOCK]
            block = reduced_of(tokens_of(samples, self._structure, size=SIZE, seed=SEED), stacks)
            if self._are_kept:
                self._kept.append((start, block))
            yield start, block


class _Sums(NamedTuple):
    """For each fold, site → sums of energies on both sides; and how many adapters have an update there."""

    energies: list[dict[str, tuple[Matrix, Matrix]]]
    counts: list[dict[str, int]]


def _energies(blocks: _Blocks, folds: NDArray[np.int64], count: int) -> _Sums:
    sums = _Sums([{} for _ in range(count)], [{} for _ in range(count)])
    for start, block in blocks:
        own = folds[start : start + len(block[0].log_norm)]
        for fold in set(own.tolist()):
            for reduced in block:
                part = _rows(reduced, np.flatnonzero(own == fold))
                present = part.present.sum(0)
                for (name, (left, right)), number in zip(part.energies().items(), present, strict=True):
                    before = sums.energies[fold].get(name, (0.0, 0.0))
                    sums.energies[fold][name] = (before[0] + left, before[1] + right)
                    sums.counts[fold][name] = sums.counts[fold].get(name, 0) + int(number)
    return sums


def _statistics(sums: _Sums, folds: Sequence[int], leading: int) -> SiteStatistics:
    """The statistics relative to the mean energies of these folds."""
    sides: list[dict[str, Matrix]] = [{}, {}]
    for name in sums.energies[folds[0]]:
        number = max(sum(sums.counts[fold].get(name, 0) for fold in folds), 1)
        for side in (0, 1):
            sides[side][name] = np.add.reduce([sums.energies[fold][name][side] for fold in folds]) / number
    return SiteStatistics(sides[0], sides[1], leading)


def _rows(reduced: Reduced, rows: NDArray[np.int64]) -> Reduced:
    return Reduced(reduced.names, *(array[rows] for array in reduced[1:]))


def _own(values: Matrix) -> tuple[Matrix, Matrix]:
    """The mean over sites of the log norm [n], NaN where there is no update; and the values, log norms less it."""
    total = _nanmean(values[..., 0], 1)
    own = values.copy()
    own[..., 0] -= total[:, None]
    return total, own


def _robust(values: Matrix) -> tuple[Matrix, Matrix]:
    """Median and 1.4826 · median absolute deviation over the first axis, NaN left out."""
    centre = _nanmedian(values)
    return centre, np.maximum(1.4826 * _nanmedian(np.abs(values - centre)), LEAST_SPREAD)


def _nanmedian(values: Matrix) -> Matrix:
    is_empty = np.isnan(values).all(axis=0)
    return np.nanmedian(np.where(is_empty, 0.0, values), axis=0)


def _nanmean(values: Matrix, axis: int) -> Matrix:
    """NaN where all are NaN, without a warning."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)
