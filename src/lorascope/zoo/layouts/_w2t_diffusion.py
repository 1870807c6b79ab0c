"""CelebA-LoRA and CUB-LoRA of *W2T*: Stable Diffusion 1.4, rank 8, alpha 27."""

from __future__ import annotations

import re
from typing import Any

from lorascope.errors import ZooError
from lorascope.zoo.label_files import Line, Table
from lorascope.zoo.layout import PUBLISHED_SPLIT, Entry, Reading, required, split_notes, split_of_names
from lorascope.zoo.layouts._lol_celeba import BASE
from lorascope.zoo.schema import Type
from lorascope.zoo.tree import Tree, joined

_NAME = re.compile(
    r"model_(?P<seed>\d{1,9})_(?P<rate>\d)_(?P<steps>\d)_(?P<accumulation>\d)_(?P<prompt>\d)_(?P<number>\d{1,9})"
)
_TABLES = {"celeba": "celeba_labels.csv", "cub": "cub_labels.csv"}
_PLANS = {"celeba": ("results.csv", "plan.csv"), "cub": ("results.csv", "cub_plan.csv")}
_KEYS = {"celeba": "celeb_folder", "cub": "cub_folder"}
_OTHERS = {
    "celeba": ("celeb_folder", "num_images_in_folder", "num_unique_source_images"),
    "cub": ("cub_folder", "image_id", "image_name", "rel_path"),
}
_SUBJECT = re.compile(r"(?:celeb|cub)_(?P<number>\d{1,9})")


def diffusion_variants(tree: Tree) -> list[str]:
    """Which of the two tables of labels lies beside the models; ``celeba`` where none does, which then is missing."""
    if not tree.matching(_NAME):
        return []
    return [variant for variant, table in _TABLES.items() if tree.file(table)] or ["celeba"]


def read_diffusion(tree: Tree, variant: str, *, published_split: bool) -> Reading:
    """The adapters with the attributes of their celebrity or image.

    Raises:
        ZooError: where the table of labels is missing, or the published split is asked for and missing.
    """
    table = Table(required(tree, _TABLES[variant], "the table of labels"), (_KEYS[variant],))
    names = [name for name in table.names if name not in _OTHERS[variant]]
    labels: dict[int, Line] = {}
    for line in table:
        subject = _SUBJECT.fullmatch(line.text(_KEYS[variant]) or "")
        if subject is None or int(subject["number"]) in labels:
            raise line.error(_KEYS[variant], f"{_KEYS[variant].partition('_')[0]}_<number>, each once")
        labels[int(subject["number"])] = line
    plan = _plan(tree, variant)
    published = split_of_names(tree) if published_split else {}
    entries: list[Entry] = []
    for path, match in tree.matching(_NAME):
        number = int(match["number"])
        line, name = labels.get(number), path.rpartition("/")[2]
        values: dict[str, Any] = {
            "seed": int(match["seed"]),
            "learning_rate_index": int(match["rate"]),
            "steps_index": int(match["steps"]),
            "accumulation_index": int(match["accumulation"]),
            "prompt_index": int(match["prompt"]),
            **plan.get(name, {}),
            **({attribute: line.is_set(attribute) for attribute in names} if line else {}),
        }
        if name in published:
            values[PUBLISHED_SPLIT] = published[name]
        group = _group(variant, number, line)
        entries.append(Entry(path, group, values, line is not None, joined(path, "unet")))
    present = {int(match["number"]) for _, match in tree.matching(_NAME)}
    prefix = _KEYS[variant].partition("_")[0]
    types: dict[str, Type] = dict.fromkeys(names, "bool")
    return Reading(
        variant=variant,
        count=len(entries),
        entries=entries,
        hyperparameters={
            "seed": "int",
            "learning_rate_index": "int",
            "steps_index": "int",
            "accumulation_index": "int",
            "prompt_index": "int",
            "learning_rate": "float",
            "steps": "int",
            "accumulation": "int",
            "prompt": "string",
        },
        labels=types,
        missing=[f"{prefix}_{number}" for number in labels if number not in present],
        base=BASE,
        notes=split_notes(entries, published) if published_split else [],
    )


def _group(variant: str, number: int, line: Line | None) -> str:
    if variant == "celeba":
        return f"celebrity {number}"
    species = (line.text("rel_path") or "").partition("/")[0] if line else ""
    return f"species {species[:100]}" if species else f"image {number}"


def _plan(tree: Tree, variant: str) -> dict[str, dict[str, Any]]:
    """Name of a run → its hyperparameters, from what was run, or else what was planned."""
    file = tree.file(*_PLANS[variant])
    if file is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in Table(file, ("run_name",)):
        name = line.text("run_name")
        if name is None or _NAME.fullmatch(name) is None:
            raise ZooError("is no name of a run", file=file, key=f"line {line.number}", found=ascii(name)[:60])
        found[name] = {
            "learning_rate": line.number_of("learning_rate"),
            "steps": line.integer("max_train_steps"),
            "accumulation": line.integer("gradient_accumulation_steps"),
            "prompt": line.text("instance_prompt"),
        }
    return found
