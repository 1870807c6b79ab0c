"""The results of the bench as values: one table for each zoo and target, one row for each contender."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from lorascope.predict.bench.cells import Result, options
from lorascope.predict.bench.contenders import SHUFFLED, Contender
from lorascope.predict.bench.measures import CLEAN, SPEED, unpacked
from lorascope.predict.bench.paired import Difference, above_chance, chance, first_metric, paired_differences
from lorascope.predict.bench.question import Question
from lorascope.predict.targets import Task

SCHEMA_VERSION = 2
"""Version 1 did not say why a metric is undefined."""

Status = Literal["ok", "refused", "failed"]

CLEARLY = 0.05
"""How far above chance a score must be, and by two standard deviations, before it is said which share of it is lost."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1) over members; NaN where undefined."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of one value for each member; a mean with a part that is undefined is so too."""
        known = [math.nan if value is None else value for value in values]
        sd = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
        return cls(float(np.mean(known)) if known else math.nan, sd)


@dataclass(frozen=True)
class Entry:
    """What a column says of a row.

    Args:
        status: whether there is a score.
        score: the first metric.
        kept: share of the score above chance that is left, beside the same members on the same adapters as they are;
            NaN where that was not clearly above chance.
        n: adapters judged.
        reason: why there is no score.
        facts: what else is known, such as how many adapters were of groups seen in training.
    """

    status: Status
    score: Spread
    kept: float = math.nan
    n: int = 0
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Row:
    """A contender: metrics on the test adapters, its cost, what attacks leave of it, how far it is from the best.

    ``undefined``: why metrics are NaN. ``training_seconds`` is the median over members, of the first of which libraries
    are imported.
    """

    label: str
    role: str
    model: str
    options: Mapping[str, Any]
    invariance: str
    status: Status
    reason: str | None
    metrics: Mapping[str, Spread]
    undefined: Mapping[str, str]
    training_seconds: float
    adapters_per_second: float
    parameters: int
    columns: Mapping[str, Entry]
    to_best: Difference | None


@dataclass(frozen=True)
class Table:
    """One target of one zoo.

    Args:
        zoo, target, task: what was asked.
        metric: the first one, by which rows are compared.
        taught, tested: numbers of adapters.
        tested_groups: number of groups among the tested.
        unlabelled: adapters without a value of the target.
        best: the label of the best row, None where none has a score.
        rows: in the order of the contenders.
    """

    zoo: str
    target: str
    task: Task
    metric: str
    taught: int
    tested: int
    tested_groups: int
    unlabelled: int
    best: str | None
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON, but that undefined numbers are NaN."""
        value = asdict(self)
        for row in value["rows"]:
            difference = row["to_best"]
            row["to_best"] = None if difference is None else dict(zip(Difference._fields, difference, strict=True))
        return value


def table_of(
    zoo: str, question: Question, results: Sequence[tuple[Contender, list[dict[str, Result]]]], *, seed: int = 0
) -> Table:
    """The table of a question.

    Args:
        zoo: its name.
        question: what was asked.
        results: for each contender, for each of its members, column → result.
        seed: of the bootstrap's draws.
    """
    metric = first_metric(question.target.task)
    rows = [_row(question, contender, members, metric) for contender, members in results]
    scored = [i for i, row in enumerate(rows) if math.isfinite(row.metrics.get(metric, Spread.of([])).mean)]
    fair = [i for i in scored if rows[i].label != SHUFFLED]
    best = max(fair, key=lambda i: rows[i].metrics[metric].mean) if fair else None
    if best is not None:
        target = question.target
        truth = target.encode([question.dataset.values(target.name)[i] for i in question.tested], ignore_unknown=True)
        if not target.is_classification:
            truth = truth * target.spread + target.mean
        predictions = [[unpacked(one[CLEAN.column]["predicted"]) for one in results[i][1]] for i in scored]
        groups = question.names(question.tested)
        differences = paired_differences(target, truth, predictions, scored.index(best), groups, seed=seed)
        for i, difference in zip(scored, differences, strict=True):
            rows[i] = Row(**{**vars(rows[i]), "to_best": difference})
    return Table(
        zoo,
        question.target.name,
        question.target.task,
        metric,
        len(question.taught),
        len(question.tested),
        len(set(question.names(question.tested))),
        question.unlabelled,
        None if best is None else rows[best].label,
        tuple(rows),
    )


def _row(question: Question, contender: Contender, members: list[dict[str, Result]], metric: str) -> Row:
    clean = [member[CLEAN.column] for member in members]
    status, reason = _status(clean)
    is_ok = status == "ok"
    # intervals, and with them their coverage, are missing where a member had too few samples to promise anything
    names = list(dict.fromkeys([metric, *(name for one in clean for name in one["metrics"])])) if is_ok else []
    columns = [name for name in members[0] if name not in (CLEAN.column, SPEED.column)]
    speed = members[0].get(SPEED.column, {})
    return Row(
        contender.label,
        contender.role,
        contender.model.name,
        dict(options(contender)),
        contender.model.invariance,
        status,
        reason,
        {name: Spread.of([one["metrics"].get(name, math.nan) for one in clean]) for name in names},
        {name: why for one in clean for name, why in one["undefined"].items()} if is_ok else {},
        float(np.median([one["training_seconds"] for one in clean])) if is_ok else math.nan,
        speed.get("adapters_per_second", math.nan),
        max(one["parameters"] for one in clean) if is_ok else 0,
        {column: _entry(question, column, members, metric) for column in columns} if is_ok else {},
        None,
    )


def _entry(question: Question, column: str, members: list[dict[str, Result]], metric: str) -> Entry:
    asked = [member for member in members if column in member]
    results = [member[column] for member in asked]
    status, reason = _status(results)
    if status != "ok":
        return Entry(status, Spread.of([]), reason=reason)
    score = Spread.of([one["metrics"][metric] for one in results])
    level = chance(question.target.task)
    before = Spread.of([one[column].get("reference", one[CLEAN.column]["metrics"])[metric] for one in asked])
    doubt = 2 * before.sd if math.isfinite(before.sd) else 0.0
    is_clear = before.mean - level > max(CLEARLY, doubt)
    kept = above_chance(score.mean, level, before.mean) if is_clear else math.nan
    facts = {name: value for name, value in results[0].items() if name not in ("status", "metrics", "reference", "n")}
    return Entry("ok", score, kept, results[0]["n"], None, {**facts, "before": asdict(before)})


def _status(results: Sequence[Result]) -> tuple[Status, str | None]:
    """That of all members together: the worst of theirs."""
    for status in ("failed", "refused"):
        for one in results:
            if one["status"] == status:
                return status, one["reason"]
    return "ok", None
