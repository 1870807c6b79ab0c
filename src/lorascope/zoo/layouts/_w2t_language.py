"""The language LoRAs of *W2T*: GoEmotions, an adapter for each text, and runs on ARC-Easy and four other data sets.

Their weights lie without an ``adapter_config.json``, and so without their scale; rank and alpha are in a file beside
each (``<name>_config.json``) or in the table. Paths that a table states are not followed: a row is of the adapter
whose run it names.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from lorascope.errors import ZooError
from lorascope.zoo.label_files import Line, Table, read_object
from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.tree import Tree, joined

_EMOTION = re.compile(r"lora_(?P<data>[A-Za-z0-9]+)_(?P<model>.+)_(?P<run>\d{1,9})\.safetensors", re.DOTALL)
_TRIAL = re.compile(r"trial_(?P<run>\d{1,9})")
_METADATA = re.compile(r"lora_label_info\.csv|metadata_gpu_\d{1,4}\.csv")
_RESULTS = re.compile(r"results.*\.csv", re.DOTALL)
_TOKENS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")


def language_variants(tree: Tree) -> list[str]:
    """By the names of the files of weights."""
    found = []
    if _emotions(tree):
        found.append("goemotions")
    if _trials(tree):
        found.append("runs")
    return found


def _emotions(tree: Tree) -> list[tuple[str, re.Match[str]]]:
    """The files of weights in the folder and down to two levels below it, where a file of label names is beside."""
    folders = ("", *tree.folders(), *(joined(one, two) for one in tree.folders() for two in tree.folders(one)))
    return [
        (joined(inside, name), match)
        for inside in folders
        if "labels.json" in tree.files(inside)
        for name in tree.files(inside)
        if (match := _EMOTION.fullmatch(name))
    ]


def _trials(tree: Tree) -> list[tuple[str, int]]:
    return [
        (joined(path, f"{match[0]}.safetensors"), int(match["run"]))
        for path, match in tree.matching(_TRIAL)
        if f"{match[0]}.safetensors" in tree.files(path)
    ]


def read_goemotions(tree: Tree) -> Reading:
    """The adapters with the emotions of the text that each was trained on.

    Raises:
        ZooError: where the table is missing, or a vector of labels does not fit their names.
    """
    files = [tree.at(path) for path, _ in tree.files_matching(_METADATA)]
    if not files:
        raise ZooError(
            "the table of labels is missing", file=tree.root, expected="lora_label_info.csv or metadata_gpu_<k>.csv"
        )
    merged = [file for file in files if file.name == "lora_label_info.csv"]
    lines: dict[tuple[str, str, int], Line] = {}
    for file in merged or files:
        for line in Table(file, ("run_id", "dataset", "base_model", "label_vector")):
            lines.setdefault(_run(line), line)
    entries: list[Entry] = []
    used: set[tuple[str, str, int]] = set()
    names: dict[str, list[str]] = {}
    for path, match in _emotions(tree):
        inside = path.rpartition("/")[0]
        if inside not in names:
            names[inside] = _label_names(tree, inside)
        run = (match["data"], match["model"], int(match["run"]))
        line = lines.get(run)
        used |= {run} & lines.keys()
        text = line.text("text_sha1") if line else None
        values = {} if line is None else {**_hyperparameters(line), **_measured(line, names[inside])}
        group = f"text {text[:64]}" if text else f"run {'/'.join(map(str, run))}"
        id_ = path.removesuffix(".safetensors")
        entries.append(_entry(tree, path, line, Entry(id_, group, values, line is not None, path)))
    return Reading(
        variant="goemotions",
        count=len(entries),
        entries=entries,
        hyperparameters={
            **dict.fromkeys(("rank", "epochs", "seed"), "int"),
            **dict.fromkeys(("alpha", "dropout", "learning_rate", "weight_decay", "warmup_ratio"), "float"),
            "schedule": "string",
        },
        labels={"emotions": "list<string>", **dict.fromkeys(("val_loss", "test_loss", "final_train_loss"), "float")},
        missing=[f"run {'/'.join(map(str, run))[:100]}" for run in lines if run not in used],
        needs_out=True,
        notes=_without_scale(entries),
    )


def read_runs(tree: Tree) -> Reading:
    """The adapters with what was measured of each run.

    Raises:
        ZooError: where no table of results is there.
    """
    files = [tree.at(path) for path, _ in tree.files_matching(_RESULTS)]
    if not files:
        raise ZooError("the table of results is missing", file=tree.root, expected="results*.csv")
    lines: dict[int, Line] = {}
    for file in files:
        for line in Table(file, ("run_id", "dataset", "test_loss")):
            run = line.integer("run_id")
            if run is None or lines.setdefault(run, line) is not line:
                raise line.error("run_id", "the number of a run, each once")
    entries: list[Entry] = []
    trials = _trials(tree)
    for path, run in trials:
        line = lines.get(run)
        values: dict[str, Any] = {}
        group = f"run {run}"
        if line is not None:
            numbers = {"learning_rate": "lr", "weight_decay": "weight_decay", "dropout": "lora_dropout"}
            values = {name: line.number_of(column) for name, column in numbers.items()}
            values |= {name: line.integer(name) for name in ("epochs", "seed", "train_samples")}
            values |= {"rank": line.integer("lora_r"), "alpha": line.number_of("lora_alpha")}
            values |= {name: line.number_of(name) for name in ("test_loss", "test_ppl", "test_acc")}
            values |= {"dataset": line.text("dataset")}
            if subset := line.text("subset_hash"):
                group = f"subset {line.text('dataset')} {subset[:64]}"
        id_ = path.removesuffix(".safetensors").rpartition("/")[0]
        entries.append(_entry(tree, path, line, Entry(id_, group, values, line is not None, path)))
    present = {run for _, run in trials}
    return Reading(
        variant="runs",
        count=len(entries),
        entries=entries,
        hyperparameters={
            **dict.fromkeys(("rank", "epochs", "seed"), "int"),
            **dict.fromkeys(("alpha", "dropout", "learning_rate", "weight_decay"), "float"),
        },
        labels={
            "dataset": "string",
            "train_samples": "int",
            **dict.fromkeys(("test_loss", "test_ppl", "test_acc"), "float"),
        },
        missing=[f"run {run}" for run in lines if run not in present],
        needs_out=True,
        notes=_without_scale(entries),
    )


def _run(line: Line) -> tuple[str, str, int]:
    """Data, model and number of a run, as the names of the files have them."""
    run = line.integer("run_id")
    if run is None:
        raise line.error("run_id", "the number of a run")
    model = (line.text("base_model") or "").rpartition("/")[2]
    return line.text("dataset") or "", re.sub(r"[^a-zA-Z0-9._-]+", "-", model), run


def _label_names(tree: Tree, inside: str) -> list[str]:
    file = tree.at(joined(inside, "labels.json"))
    names = read_object(file).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ZooError("states no names of labels", file=file, key="label_names")
    return names


def _hyperparameters(line: Line) -> dict[str, Any]:
    return {
        "rank": line.integer("lora_r"),
        "alpha": line.number_of("lora_alpha"),
        "dropout": line.number_of("lora_dropout"),
        "learning_rate": line.number_of("learning_rate"),
        "weight_decay": line.number_of("weight_decay"),
        "epochs": line.integer("num_epochs"),
        "warmup_ratio": line.number_of("warmup_ratio"),
        "schedule": line.text("lr_scheduler_type"),
        "seed": line.integer("seed"),
    }


def _measured(line: Line, names: list[str]) -> dict[str, Any]:
    try:
        vector = json.loads(line.text("label_vector") or "")
    except (ValueError, RecursionError):
        vector = None
    if not isinstance(vector, list) or len(vector) != len(names) or not all(bit in (0, 1) for bit in vector):
        raise line.error("label_vector", f"a list of {len(names)} zeros and ones")
    emotions = [name for name, bit in zip(names, vector, strict=True) if bit]
    losses = {name: line.number_of(name) for name in ("val_loss", "test_loss", "final_train_loss")}
    return {"emotions": emotions, **losses}


def _entry(tree: Tree, path: str, line: Line | None, entry: Entry) -> Entry:
    """The entry with its configuration, or with what is wrong with that: without it the scale would be wrong."""
    try:
        return replace(entry, config=_config(tree, path, line))
    except ZooError as error:
        return replace(entry, damage=str(error))


def _config(tree: Tree, path: str, line: Line | None) -> dict[str, Any] | None:
    """The configuration of an adapter: beside its weights under a name of its own, or else from its row."""
    inside, _, name = path.rpartition("/")
    beside = name.removesuffix(".safetensors") + "_config.json"
    if beside in tree.files(inside):
        config = read_object(tree.at(joined(inside, beside)))
        base = config.pop("base_model", None)
        named = {"base_model_name_or_path": base} if isinstance(base, str) else {}
        return {"peft_type": "LORA", **named, **config}
    rank, alpha = (line.integer("lora_r"), line.number_of("lora_alpha")) if line else (None, None)
    if line is None or rank is None or alpha is None:
        return None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _TOKENS.findall(line.text("target_modules") or ""),
        "base_model_name_or_path": line.text("base_model"),
    }


def _without_scale(entries: list[Entry]) -> list[str]:
    count = sum(entry.config is None and entry.damage is None for entry in entries)
    return [f"{count} adapters have neither a configuration nor a row: their scale is taken as 1"] if count else []
