"""Fit: a zoo, a target and a model to a predictor, one member per seed."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.calibration import Calibration
from lorascope.predict.dataset import Dataset, rows_of
from lorascope.predict.intervals import Trained, calibrate, unseen_by
from lorascope.predict.metrics import measure, why_undefined
from lorascope.predict.model import Inputs, Model, Split, Structure
from lorascope.predict.predictor import Member, Predictor, group_hash
from lorascope.predict.targets import Target, is_missing
from lorascope.version import __version__
from lorascope.zoo import split_of

MINIMUM = 12
"""Fewer training samples than this teach nothing that could be checked."""


def fit_predictor(
    dataset: Dataset,
    target: str,
    model: Model,
    *,
    seeds: Sequence[int] = (0,),
    task: str | None = None,
    advance: Callable[[int], Any] | None = None,
    done: Callable[[], Any] | None = None,
) -> Predictor:
    """A predictor of ``target`` with one member per seed.

    The test split is never touched: its adapters are not even read. For each seed the other groups are parted anew,
    85 % for training and the rest in halves, one to stop by and one to calibrate on, so that the spread over members
    holds the choice of samples as well as the initialisation.

    Args:
        dataset: of a zoo.
        target: a label column.
        model: a member of ``MODELS`` with its options.
        seeds: one member each.
        task: instead of the one found from the column.
        advance: called with the number of adapters read.
        done: called after each member.

    Raises:
        PredictorError: for an unknown target, or too few adapters with a value of it.
    """
    values = dataset.values(target)
    offered = dataset.where("train", "validation")
    known = [int(i) for i in offered if not is_missing(values[i])]
    if len(known) < MINIMUM:
        raise PredictorError(
            "too few adapters to learn from",
            key=target,
            expected=f"at least {MINIMUM} with a label outside the test split",
            found=len(known),
        )
    indices = np.asarray(known)
    goal = Target.of(target, [values[i] for i in known], task)
    structure = dataset.structure(indices)
    own = dataset.inputs(model, structure, advance, indices=indices)
    encoded = goal.encode([values[i] for i in known])
    members: list[Member] = []
    trained: list[Trained] = []
    groups = [dataset.groups[i] for i in known]
    for seed in seeds:
        member, one = fit_member(model, own, encoded, groups, goal, structure, seed=seed)
        members.append(member)
        trained.append(one)
        if done is not None:
            done()
    names = sorted(set(groups))
    return Predictor(
        target=goal,
        model=model,
        structure=structure,
        members=tuple(members),
        groups=frozenset(group_hash(group) for group in names),
        facts={
            "zoo": dataset.digest,
            "split": blake2b("\n".join(names).encode(), digest_size=16).hexdigest(),
            "samples": len(known),
            "left_out": {"unlabelled": len(offered) - len(known), "damaged": len(dataset.damaged)},
            "versions": _versions(),
            **_own_metrics(goal, trained[0]),
        },
        intervals=calibrate(goal, trained, encoded, groups),
        familiarity=None if model.invariance == "blind" else dataset.familiarity(structure, indices),
    )


def fit_member(
    model: Model,
    inputs: Inputs,
    encoded: NDArray[np.float64],
    groups: Sequence[str],
    target: Target,
    structure: Structure,
    *,
    seed: int,
) -> tuple[Member, Trained]:
    """One member, and what its intervals can be made from.

    85 % of the groups are for training; of the rest, halves to stop by and to calibrate on. The seed parts them. A
    model that needs samples to stop by gets one whole group where that would leave none. Of one group alone nothing
    can be held: a network is then stopped by its training loss, its scores are taken for what they are, and there are
    no metrics of it and no intervals.

    Args:
        model: with its options.
        inputs: of the samples that may be learnt from.
        encoded: [n, width], their targets.
        groups: their groups.
        target, structure: what is predicted, of which adapters.
        seed: of the parting and of the initialisation.
    """
    is_left_out = model.calibrated_on == "left-out"
    parts = _parts(groups, seed, must_hold=not is_left_out)
    train, stop, held = (
        Split(rows_of(inputs, part), encoded[part], tuple(groups[int(i)] for i in part)) for part in parts
    )
    fitted = model.fit(train, stop, target, structure, seed=seed)
    scores, truth = unseen_by(fitted, held, is_left_out=is_left_out)
    if not np.isfinite(scores).all():
        raise PredictorError(
            "the fitted model gives numbers that are not finite",
            key=model.name,
            found=f"{int((~np.isfinite(scores)).any(axis=1).sum())} of {len(scores)} samples that it never saw",
            hint="is an adapter of the zoo many orders larger than the others, or the learning rate too high?",
        )
    calibration = Calibration.fit(target, scores, truth)
    return Member(seed, fitted, calibration), Trained(fitted, calibration, train, held, parts[0], parts[2], is_left_out)


def _validation(groups: Sequence[str], seed: int, *, must_hold: bool) -> NDArray[np.bool_]:
    """About 15 % of the groups, by a hash salted with the seed; every sixth group where that leaves a side empty.

    Of fewer than six groups that may be none; one, drawn by the seed, where some must be held and there are two.
    """
    names = [split_of(group, salt=f"member {seed}") for group in groups]
    chosen = np.asarray([name == "validation" for name in names])
    if chosen.any() and not chosen.all():
        return chosen
    order = {group: place for place, group in enumerate(sorted(set(groups)))}
    if must_hold and 1 < len(order) < 6:
        held = int(np.random.default_rng(seed).integers(len(order)))
        return np.asarray([order[group] == held for group in groups])
    return np.asarray([order[group] % 6 == 5 for group in groups])


def _parts(
    groups: Sequence[str], seed: int, *, must_hold: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The places of a member's three parts: to train on, to stop by, and to calibrate on.

    The last two are the halves of the validation part, by groups; the same where it is of one group alone.
    """
    is_validation = _validation(groups, seed, must_hold=must_hold)
    others = np.flatnonzero(is_validation)
    own = [groups[int(i)] for i in others]
    order = {group: place for place, group in enumerate(sorted(set(own)))}
    is_held = np.asarray([order[group] % 2 == 0 for group in own])
    stop, held = (others[~is_held], others[is_held]) if len(order) > 1 else (others, others)
    return np.flatnonzero(~is_validation), stop, held


def _own_metrics(target: Target, trained: Trained) -> dict[str, dict[str, Any]]:
    """``metrics`` on the samples that calibrated a member (held, or leave-one-out), and why some are ``undefined``.

    None where there are no such samples.
    """
    scores, truth = trained.unseen()
    if not len(truth):
        return {"metrics": {}, "undefined": {}}
    predicted = trained.calibration.predict(target, scores)
    actual = trained.calibration.predict(target, truth) if target.task == "regression" else truth
    metrics = measure(target, actual, predicted)
    if trained.is_left_out and _says_the_mean(trained, target):
        metrics |= {name: math.nan for name in ("kendall_tau", "auroc") if name in metrics}
        return {
            "metrics": metrics,
            "undefined": {name: MEAN_ALONE for name, value in metrics.items() if value != value},
        }
    return {"metrics": metrics, "undefined": why_undefined(metrics, target, actual, predicted)}


MEAN_ALONE = "the model says the mean of all adapters"
LOOKED_AT = 256
"""Training samples whose scores tell whether a model says more than the mean."""


def _says_the_mean(trained: Trained, target: Target) -> bool:
    """Whether what is said of the training samples varies by less than the mean does when samples are left out.

    Without a group of m the mean of n lies against it by up to m / (n − m) of its own deviation. The order of left-out
    scores is then that of the mean, the reverse of the truth, and says nothing of the model.
    """
    truth = trained.train.targets
    largest = max(Counter(trained.train.groups).values())
    some = rows_of(trained.train.inputs, np.arange(min(len(truth), LOOKED_AT)))
    said = trained.calibration.predict(target, trained.fitted.scores(some))
    units = truth if target.is_classification else trained.calibration.predict(target, truth)
    shift = largest / max(len(truth) - largest, 1) * units.std(axis=0).max()
    return bool(said.std(axis=0).max() <= shift)


def _versions() -> dict[str, str]:
    versions = {"lorascope": __version__, "python": sys.version.split()[0], "numpy": np.__version__}
    if "torch" in sys.modules:
        versions["torch"] = str(sys.modules["torch"].__version__)
    return versions
