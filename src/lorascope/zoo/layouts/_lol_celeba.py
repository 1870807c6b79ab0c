"""CelebA-LoRA of *Learning on LoRAs*: Stable Diffusion 1.4, one adapter a run, several for some celebrities."""

from __future__ import annotations

import contextlib
import re

from lorascope.errors import ZooError
from lorascope.zoo.label_files import read_plain_pickle
from lorascope.zoo.layout import PUBLISHED_SPLIT, Entry, Reading, split_notes, split_of_names
from lorascope.zoo.layouts._celebrities import Celebrities, attributes_of_celebrities
from lorascope.zoo.schema import Type
from lorascope.zoo.tree import Tree, joined

CELEBA_NAME = re.compile(
    r"model_(?P<rate>[0-3])_(?P<steps>[0-3])_(?P<accumulation>[0-3])_(?P<prompt>[0-3])_(?P<celebrity>\d{1,9})"
)
BASE = "CompVis/stable-diffusion-v1-4"

_RATES = (1e-4, None, 1e-3, 3e-3)  # of index 1 code and paper say different things
_STEPS = (100, 133, 167, 200)
_ACCUMULATION = (1, 2, 1, 2)
_PROMPTS = ("celebrity", "person", "thing", "skd")
_SCORE_BYTES = 64 << 10


def read_celeba(tree: Tree, *, published_split: bool) -> Reading:
    """The adapters with the attributes of their celebrity and, where it was measured, their CLIP score.

    Raises:
        ZooError: where there are neither attributes nor scores, or the published split is asked for and missing.
    """
    models = tree.matching(CELEBA_NAME)
    scores = {path: _score(tree, path) for path, _ in models if "score" in tree.files(path)}
    try:
        celebrities = attributes_of_celebrities(tree)
    except ZooError:
        if not scores or tree.file("list_attr_celeba.csv") is not None:
            raise
        celebrities = Celebrities([], {})
    names, attributes = celebrities.names, celebrities.had
    published = split_of_names(tree) if published_split else {}
    entries: list[Entry] = []
    for path, match in models:
        celebrity = int(match["celebrity"])
        known = attributes.get(celebrity)
        values = {
            "learning_rate_index": int(match["rate"]),
            "learning_rate": _RATES[int(match["rate"])],
            "steps": _STEPS[int(match["steps"])],
            "accumulation": _ACCUMULATION[int(match["accumulation"])],
            "prompt": _PROMPTS[int(match["prompt"])],
            "clip_score": scores.get(path),
            **(known or {}),
        }
        name = path.rpartition("/")[2]
        if name in published:
            values[PUBLISHED_SPLIT] = published[name]
        is_labelled = known is not None or (not names and scores.get(path) is not None)
        entries.append(Entry(path, f"celebrity {celebrity}", values, is_labelled, joined(path, "unet")))
    of_models = {int(match["celebrity"]) for _, match in models}
    labels: dict[str, Type] = {"clip_score": "float", **dict.fromkeys(names, "bool")}
    notes = split_notes(entries, published) if published_split else []
    if unread := sum(score is None for score in scores.values()):
        notes.append(f"{unread} files of CLIP scores are damaged: null")
    if celebrities.unknown:
        notes.append(f"{celebrities.unknown} photographs are not in the table of attributes")
    if not names:
        notes.append("no attributes: list_attr_celeba.csv is not in the folder")
    return Reading(
        variant="celeba",
        count=len(entries),
        entries=entries,
        hyperparameters={
            "learning_rate_index": "int",
            "learning_rate": "float",
            "steps": "int",
            "accumulation": "int",
            "prompt": "string",
        },
        labels=labels,
        missing=[f"celeb_{celebrity}" for celebrity in sorted(attributes.keys() - of_models)],
        base=BASE,
        notes=notes,
    )


def _score(tree: Tree, path: str) -> float | None:
    """The CLIP score that lies in the folder of a model, None where it is damaged."""
    with contextlib.suppress(ZooError, TypeError, ValueError):
        return float(read_plain_pickle(tree.at(joined(path, "score")), _SCORE_BYTES))
    return None
