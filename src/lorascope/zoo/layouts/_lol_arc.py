"""Qwen2-ARC-LoRA of *Learning on LoRAs* (and its Llama twin): ARC without a random subset of its 19 sources."""

from __future__ import annotations

import contextlib
import re

from lorascope.errors import ZooError
from lorascope.zoo.label_files import Line, Table, read_number
from lorascope.zoo.layout import Entry, Reading, required
from lorascope.zoo.tree import Tree, joined

SOURCES = (
    *("MCAS", "NYSEDREGENTS", "TIMSS", "ACTAAP", "NCEOGA", "MDSA", "VASoL", "AKDE&ED", "CSZ", "MEA", "LEAP", "NAEP"),
    *("MSA", "OHAT", "AIMS", "TAKS", "MEAP", "FCAT", "WASL"),
)
"""The sources that can be left out, in the order of the code's labels; Mercury never is."""

_NAME = re.compile(r".*?(?P<number>\d{1,9})", re.DOTALL)
_HPARAMS = "hparams.csv"
_COLUMNS = ("learning_rate", "weight_decay", "num_epochs", "batch_size", "lora_dropout", "filter_sources")
_MEASURED = {"eval_loss": "eval_loss.txt", "arc_challenge_accuracy": "ARC-Challenge-Acc.txt"}


def is_arc(tree: Tree) -> bool:
    """Whether folders hold pickled weights beside a text file of the loss."""
    return any(_is_adapter(tree, path) for path, _ in tree.matching(_NAME))


def _is_adapter(tree: Tree, path: str) -> bool:
    return {"adapter_model.bin", "eval_loss.txt"} <= set(tree.files(path))


def read_arc(tree: Tree) -> Reading:
    """The adapters with the sources that were not left out, and what was measured of each.

    Raises:
        ZooError: where the table of hyperparameters is missing, or names a source that there is not.
    """
    lines = list(Table(required(tree, _HPARAMS, "the table of hyperparameters"), _COLUMNS))
    entries: list[Entry] = []
    used: set[int] = set()
    damaged = 0
    for path, match in tree.matching(_NAME):
        names = tree.files(path)
        if "adapter_model.bin" not in names:
            continue
        values: dict[str, object] = {}
        for column, file in _MEASURED.items():
            if file in names:
                with contextlib.suppress(ZooError):
                    values[column] = read_number(tree.at(joined(path, file)))
                damaged += column not in values
        number = int(match["number"])
        group = f"run {number}"
        if number < len(lines):
            used.add(number)
            values |= _values(lines[number])
            group = "without " + "|".join(sorted(set(SOURCES) - set(values["sources"])))  # type: ignore[call-overload]  # the list read above
        entries.append(Entry(path, group, values, number < len(lines), path))
    return Reading(
        variant="arc",
        count=len(entries),
        entries=entries,
        hyperparameters={
            "learning_rate": "float",
            "weight_decay": "float",
            "epochs": "int",
            "batch_size": "int",
            "dropout": "float",
        },
        labels={"sources": "list<string>", **dict.fromkeys(_MEASURED, "float")},
        missing=[f"{_HPARAMS} row {number}" for number in range(len(lines)) if number not in used],
        notes=[f"{damaged} text files of measured labels are damaged: null"] if damaged else [],
    )


def _values(line: Line) -> dict[str, object]:
    dropped = [name for name in (line.text("filter_sources") or "").split("|") if name]
    if unknown := sorted(set(dropped) - set(SOURCES)):
        raise line.error("filter_sources", f"of {', '.join(SOURCES)}; not {unknown[0][:40]}")
    return {
        "learning_rate": line.number_of("learning_rate"),
        "weight_decay": line.number_of("weight_decay"),
        "epochs": line.integer("num_epochs"),
        "batch_size": line.integer("batch_size"),
        "dropout": line.number_of("lora_dropout"),
        "sources": [name for name in SOURCES if name not in dropped],
    }
