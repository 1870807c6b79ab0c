"""The bench: every model on every target of every zoo, over several seeds, with its baselines and under attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict.attack import ATTACKS, Change, attacked, relative_change
from lorascope.predict.bench.cells import Cells, Result, key_of, versions
from lorascope.predict.bench.contenders import Contender, contenders
from lorascope.predict.bench.measures import CLEAN, SPEED, Features, Measure, Trial, also, attempt, under_attack
from lorascope.predict.bench.measures import unseen_range as unseen
from lorascope.predict.bench.question import (
    QUANTILE,
    Question,
    Structures,
    askable,
    fingerprint,
    range_hyperparameter,
)
from lorascope.predict.bench.tables import SCHEMA_VERSION, Table, table_of
from lorascope.predict.dataset import Dataset
from lorascope.predict.model import Model
from lorascope.predict.store import finite
from lorascope.zoo.schema import SPLITS

UNSEEN_RANGE = "unseen-range"
MEASURED_ADAPTERS = 64


def attack_names() -> list[str]:
    """All attacks that can be asked for."""
    return [*ATTACKS.names(), UNSEEN_RANGE]


@dataclass(frozen=True)
class Column:
    """A column beside the metrics: what it means, and by how much its attack moves ΔW (median, NaN if not at all)."""

    name: str
    meaning: str
    relative_change: float = math.nan


@dataclass(frozen=True)
class ZooFacts:
    """What a zoo was: numbers of adapters by split, hashes, who was left out."""

    name: str
    digest: str
    splits: Mapping[str, int]
    groups: int
    damaged: tuple[Mapping[str, Any], ...]
    not_asked: Mapping[str, str]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class BenchResult:
    """All tables, and what they were made from."""

    zoos: tuple[ZooFacts, ...]
    tables: tuple[Table, ...]
    seeds: tuple[int, ...]
    attack_seeds: int

    @property
    def has_failed(self) -> bool:
        """Whether a model broke, or none of a table has a score."""
        entries = (entry for table in self.tables for row in table.rows for entry in (row, *row.columns.values()))
        return any(entry.status == "failed" for entry in entries) or any(table.best is None for table in self.tables)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON, null where a number is undefined."""
        value = {
            "schema_version": SCHEMA_VERSION,
            "seeds": list(self.seeds),
            "attack_seeds": self.attack_seeds,
            "versions": versions(),
            "zoos": [asdict(zoo) for zoo in self.zoos],
            "tables": [table.as_dict() for table in self.tables],
        }
        return finite(value)


@dataclass(frozen=True)
class Plan:
    """What is asked of all zoos.

    Args:
        models: label in the table → model with its options; the baselines come by themselves.
        targets: label columns; None for all that pose a task.
        seeds: one member each.
        attacks: names among :func:`attack_names`.
        attack_seeds: the first so many members are attacked.
        range_of: the hyperparameter of ``unseen-range``; by default found.
        also: column → dataset of another zoo, which all members judge too.
    """

    models: Mapping[str, Model]
    targets: Sequence[str] | None = None
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    attacks: Sequence[str] = ()
    attack_seeds: int = 2
    range_of: str | None = None
    also: Mapping[str, Dataset] | None = None


def cells_of(zoos: Mapping[str, Dataset], plan: Plan) -> int:
    """How many members a plan fits."""
    targets = sum(len(asked_targets(dataset, plan)[0]) for dataset in zoos.values())
    return targets * len(contenders(plan.models)) * len(plan.seeds)


def asked_targets(dataset: Dataset, plan: Plan) -> tuple[list[str], dict[str, str]]:
    """The targets of a zoo, and for the labels that are none why not.

    Raises:
        PredictorError: where no label poses a task.
    """
    if plan.targets is not None:
        return list(plan.targets), {}
    good, bad = askable(dataset)
    if not good:
        reasons = "; ".join(f"{reason}" for reason in bad.values())
        raise PredictorError("no label of the zoo poses a task", found=reasons or "no labels at all")
    return good, bad


def bench(
    zoos: Mapping[str, Dataset],
    plan: Plan,
    *,
    cells: Path | None = None,
    done: Callable[[int], Any] | None = None,
) -> BenchResult:
    """Fit and measure all that a plan asks.

    Args:
        zoos: name → dataset.
        plan: what is asked.
        cells: a folder for what is measured, one file for each member as it is finished; what lies there of the same
            members is not measured again.
        done: called with 1 after each member.

    Raises:
        PredictorError: where a question cannot be asked, before anything is fitted. A model that refuses or breaks
            ends nothing: its row says why.
    """
    rows = contenders(plan.models)
    store = Cells(cells)
    others = {name: (dataset, fingerprint(dataset)) for name, dataset in (plan.also or {}).items()}
    posed = [_posed(name, dataset, plan, others) for name, dataset in zoos.items()]
    tables: list[Table] = []
    for one in posed:
        found: dict[tuple[str, str], list[dict[str, Result]]] = {}
        for features, contender in _by_model(rows):
            for question in one.questions:
                members = found.setdefault((question.target.name, contender.label), [])
                for place, seed in enumerate(plan.seeds):
                    measures = _wanted(one.measures, contender, place, plan.attack_seeds)
                    trial = Trial(contender, question, features, one.structures, seed)
                    members.append(
                        _measured(trial, measures, key_of(question, one.facts.digest, contender, seed), store)
                    )
                    if done is not None:
                        done(1)
        for question in one.questions:
            own = [(contender, found[question.target.name, contender.label]) for contender in rows]
            tables.append(table_of(one.facts.name, question, own))
    return BenchResult(tuple(one.facts for one in posed), tuple(tables), tuple(plan.seeds), plan.attack_seeds)


@dataclass(frozen=True, eq=False)
class _Posed:
    """A zoo with its questions and what is measured beside the metrics."""

    facts: ZooFacts
    questions: list[Question]
    structures: Structures
    measures: list[Measure]


def _posed(name: str, dataset: Dataset, plan: Plan, others: Mapping[str, tuple[Dataset, str]]) -> _Posed:
    structures = Structures(dataset)
    try:
        targets, not_asked = asked_targets(dataset, plan)
        questions = [Question.of(dataset, target, structures) for target in targets]
    except LorascopeError as error:
        error.file = error.file or name  # of several zoos it must be said which
        raise
    measures: list[Measure] = []
    columns: list[Column] = []
    for attack in plan.attacks:
        if attack == UNSEEN_RANGE:
            hyperparameter = range_hyperparameter(dataset, plan.range_of)
            if hyperparameter is None:
                columns.append(Column(attack, "not measured: no hyperparameter of the zoo is a number that varies"))
                continue
            measures.append(unseen(hyperparameter))
            meaning = f"fitted below the {QUANTILE:.0%} quantile of {hyperparameter}, tested above it"
            columns.append(Column(attack, meaning))
            continue
        member = ATTACKS[attack]
        for column, change in member.changes.items():
            measures.append(under_attack(column, member.formula, change))
            columns.append(Column(column, member.formula, _moved(dataset, change)))
    for column, (other, data) in others.items():
        measures.append(also(column, other, data))
        columns.append(
            Column(column, f"{len(other)} adapters of another zoo, those of groups seen in training left out")
        )
    names = [CLEAN.column, SPEED.column, *(column.name for column in columns)]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise PredictorError("two columns have the same name", key=twice, hint="call the other zoo otherwise")
    splits = {split: len(dataset.where(split)) for split in SPLITS}
    damaged = tuple(asdict(defect) for defect in dataset.damaged)
    groups = len(set(dataset.groups))
    facts = ZooFacts(name, fingerprint(dataset), splits, groups, damaged, not_asked, tuple(columns))
    return _Posed(facts, questions, structures, measures)


def _moved(dataset: Dataset, change: Change) -> float:
    """The median relative change of ΔW over the first test adapters; NaN where it cannot be measured."""
    moved: list[float] = []
    for index in dataset.where("test")[:MEASURED_ADAPTERS]:
        try:
            adapter = dataset.samples[index].read()
            moved.append(relative_change(adapter, attacked(adapter, change, name=dataset.ids[index])))
        except LorascopeError:
            continue
    known = [value for value in moved if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan


def _by_model(rows: Sequence[Contender]) -> Iterator[tuple[Features, Contender]]:
    """The contenders, those of one model one after another so that they share its features, which then go."""
    for model in dict.fromkeys(contender.model for contender in rows):
        features = Features(model)
        yield from ((features, contender) for contender in rows if contender.model == model)


def _wanted(measures: Sequence[Measure], contender: Contender, place: int, attack_seeds: int) -> list[Measure]:
    """What is measured of a contender's member: the first ones are attacked, and one member's speed is that of all."""
    if contender.is_shuffled:
        return [CLEAN]
    return [CLEAN, *([SPEED] if place == 0 else []), *(measures if place < attack_seeds else [])]


def _measured(trial: Trial, measures: Sequence[Measure], key: dict[str, Any], store: Cells) -> dict[str, Result]:
    """column → result, from the store or measured now; what failed is tried again by the next run."""
    kept = store.read(key)
    before = len(kept)
    results: dict[str, Result] = {}
    for measure in measures:
        result = kept.get(measure.key) or attempt(trial, measure)
        results[measure.column] = result
        if result["status"] == "failed":
            kept.pop(measure.key, None)
        else:
            kept[measure.key] = result
        if measure is CLEAN and result["status"] != "ok":
            break  # a member that cannot be fitted has nothing more to say
    if len(kept) != before:
        store.write(key, kept)
    return results
