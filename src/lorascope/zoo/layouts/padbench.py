"""PADBench: benign and backdoored PEFT adapters of language models. Sun et al., *PEFTGuard*, arXiv 2411.17453.

    <subset>/<subset>_label<0|1>_<index>/adapter_model.safetensors, adapter_config.json
    subset = <base>[_<method>]_<data and attack>_rank<rank>_<projections>
             llama2_7b_imdb_RIPPLE_rank256_qv, llama2_7b_adalora_toxic_backdoors_hard_rank8_qv

Label 0 is benign, 1 backdoored. Layout: the hub's data set Vincent-HKUSTGZ/PADBench as the code of those who download
it names its files (nicolapitzalis/upeftg, giacomo-cgn/upeftg); the authors' own repository (Vincent-HKUSTGZ/PEFTGuard)
has no adapters, and reads dense products ``<name>_<label>.pth`` of them: those are not imported.

Groups: the index, over all subsets. Each adapter saw its own random part of its data, and whether a benign and a
backdoored one of equal index share that part is not said, so they stay together. To ask what is read of an attack or of
data that were never seen, split by that column: ``lorascope zoo split ZOO --by data``.
"""

from __future__ import annotations

import re

from lorascope.errors import ZooError
from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.tree import Tree

_NAME = re.compile(r"(?P<subset>.+)_label(?P<label>[01])_(?P<index>\d{1,6})", re.DOTALL)
_SUBSET = re.compile(r"(?P<stem>.+)_rank(?P<rank>\d{1,5})_(?P<projections>[a-z]+)")
_METHODS = ("adalora", "dora", "lora_plus", "qlora")
_DATA = ("ag_news", "imdb", "squad", "toxic_backdoors_alpaca", "toxic_backdoors_hard")


class PadBench:
    """Benign and backdoored adapters."""

    name = "padbench"
    title = "PADBench (benign and backdoored adapters)"
    reference = "Sun et al. 2025, IEEE S&P, arXiv 2411.17453"
    files = "<subset>_label<0|1>_<index>/, in the folder or in <subset>/"
    documented = "by the code of others who download it; not by a data set card that could be read"
    unknown = (
        "the hyperparameters but the rank, the trigger, the training subset of each adapter, whether equal indices "
        "share one, and how well a backdoor took; base, data and attack only where a subset's name has known words"
    )
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        return ["adapters"] if tree.matching(_NAME) else []

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if published_split:
            raise ZooError("the layout has no published split", file=tree.root)
        entries: list[Entry] = []
        unknown: set[str] = set()
        for path, match in tree.matching(_NAME):
            values = subset_values(match["subset"])
            if values["data"] is None:
                unknown.add(match["subset"])
            values |= {"subset": match["subset"], "backdoored": match["label"] == "1"}
            entries.append(Entry(path, f"index {int(match['index'])}", values, place=path))
        notes = [f"{len(unknown)} subsets name no data that are known: data and attack null"] if unknown else []
        return Reading(
            variant=variant,
            count=len(entries),
            entries=entries,
            hyperparameters={"model": "string", "method": "string", "rank": "int", "projections": "string"},
            labels={"backdoored": "bool", "data": "string", "attack": "string", "subset": "string"},
            notes=notes,
        )


def subset_values(subset: str) -> dict[str, object]:
    """What the name of a subset says; null where it has no words that are known.

    >>> subset_values("llama2_7b_lora_plus_toxic_backdoors_hard_rank8_qv")["method"]
    'lora_plus'
    >>> subset_values("roberta_base_imdb_insertsent_rank16_qv")["attack"]
    'insertsent'
    """
    values: dict[str, object] = {}
    values |= dict.fromkeys(("model", "method", "rank", "projections", "data", "attack"))
    match = _SUBSET.fullmatch(subset)
    if match is None:
        return values
    values |= {"rank": int(match["rank"]), "projections": match["projections"]}
    stem = f"_{match['stem']}_"
    data = next((word for word in _DATA if f"_{word}_" in stem), None)
    if data is None:
        return values
    model, _, attack = stem.partition(f"_{data}_")
    method = next((word for word in _METHODS if model.endswith(f"_{word}")), "lora")
    model = model.removesuffix(f"_{method}").strip("_")
    return values | {"data": data, "attack": attack.strip("_") or data, "method": method, "model": model or None}


LAYOUT = PadBench()
