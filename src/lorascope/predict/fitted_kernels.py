"""The fitted model ``kernels``: two machines, what tells which of them judges, and what it needs of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.kernel import Kernel, Sites
from lorascope.predict.kernel_machine import Machine, Part
from lorascope.predict.leave_one_out import Matrix
from lorascope.predict.model import Inputs
from lorascope.predict.principal import Principal
from lorascope.predict.targets import Target

SMALLEST = 3e-3
"""Below this share of σ₁ a singular value may be what rounding to float16 or int8 leaves of a zero that was padded."""


def bounded(logs: Matrix) -> Matrix:
    """Spreads from their logarithms, no further than a factor of 100 from the unit of the target's spread."""
    return np.exp(np.clip(logs, np.log(0.01), np.log(100.0)))


class FittedKernels:
    """The two functions, and the left-out scores of the training adapters for calibration.

    ``principal`` reduces tokens to what the machines take. ``ranks``: the least and the largest rank of training,
    between which ``machine`` judges, else ``at_any_rank``.
    """

    def __init__(
        self,
        principal: Principal,
        machine: Machine,
        at_any_rank: Machine,
        ranks: tuple[int, int],
        calibration: tuple[Matrix, Matrix],
        weights: Mapping[Part, float],
        width: int,
        calibration_spreads: Matrix,
    ) -> None:
        self.principal = principal
        self.machine = machine
        self.at_any_rank = at_any_rank
        self.ranks = ranks
        self.calibration = calibration
        self.calibration_spreads = calibration_spreads
        self.weights = weights
        self.width = width

    def scores(self, inputs: Inputs) -> Matrix:
        """[n, width]."""
        return self.scores_and_spreads(inputs)[0]

    def scores_and_spreads(self, inputs: Inputs) -> tuple[Matrix, Matrix]:
        """The scores, and how far off each is likely to be, [n], up to a factor that calibration finds."""
        values = self._by_rank(self.principal(inputs))
        scores, logs = values[:, : self.width], values[:, self.width :]
        return scores, bounded(logs[:, 0]) if logs.shape[1] else np.ones(len(logs))

    def machine_for(self, inputs: Inputs) -> Machine:
        """That which judges the one adapter."""
        [rank] = ranks_of(inputs)
        return self.machine if self.ranks[0] <= rank <= self.ranks[1] else self.at_any_rank

    def _by_rank(self, inputs: Inputs) -> Matrix:
        """The values of each adapter by the machine that its rank calls for."""
        ranks = ranks_of(inputs)
        is_seen = (ranks >= self.ranks[0]) & (ranks <= self.ranks[1])
        if is_seen.all():
            return self.machine(inputs)
        other = self.at_any_rank({name: array[~is_seen] for name, array in inputs.items()})
        result: Matrix = np.zeros((len(ranks), other.shape[1]))
        result[~is_seen] = other
        if is_seen.any():
            result[is_seen] = self.machine({name: array[is_seen] for name, array in inputs.items()})
        return result

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The state of both machines; the ranks; the weights, for the record."""
        arrays = self.principal.state()
        values: dict[str, Any] = {"ranks": list(self.ranks)}
        for name, machine in (("seen", self.machine), ("any", self.at_any_rank)):
            own, values[name] = machine.state()
            arrays.update({f"{name}.{key}": array for key, array in own.items()})
        return arrays, values | {"weights": [[*part, weight] for part, weight in self.weights.items()]}

    @classmethod
    def restored(
        cls,
        kernels: Sequence[Kernel],
        sites: Sites,
        principal: Principal,
        columns: Callable[[str, int], int],
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
    ) -> FittedKernels:
        """From ``state``.

        Raises:
            ValueError: where it is not that of these kernels on these sites.
        """
        machine, at_any_rank = (
            Machine.restored(
                kernels,
                sites,
                columns,
                {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")},
                values[name],
            )
            for name in ("seen", "any")
        )
        weights = {Part(str(name), int(site), float(length)): float(w) for name, site, length, w in values["weights"]}
        low, high = values["ranks"]
        for one in (machine, at_any_rank):
            if len(one.intercept) - target.width not in ((0,) if target.is_classification else (0, 1)):
                raise ValueError(f"{len(one.intercept)} functions for a target of {target.width}")
        if len(machine.intercept) != len(at_any_rank.intercept):
            raise ValueError("one of the two functions tells how far off it is and the other does not")
        nothing = np.zeros((0, target.width))
        return cls(
            principal,
            machine,
            at_any_rank,
            (int(low), int(high)),
            (nothing, nothing),
            weights,
            target.width,
            np.zeros(0),
        )


def ranks_of(inputs: Inputs) -> NDArray[np.int64]:
    """The rank of each adapter, [n]: the largest over its sites of the number of σ above ``SMALLEST`` σ₁."""
    ranks: NDArray[np.int64] = np.zeros(len(inputs["S0"]), np.int64)
    for name, S in inputs.items():
        if name.startswith("S"):
            ranks = np.maximum(ranks, (S > SMALLEST * S[..., :1]).sum(axis=-1).max(axis=-1))
    return ranks
