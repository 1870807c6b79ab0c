"""Learning on LoRAs: CelebA-LoRA, Imagenette-LoRA and Qwen2-ARC-LoRA. Putterman et al., arXiv 2410.04207.

    celeba       models_4/model_<lr>_<steps>_<accumulation>_<prompt>_<celebrity>/unet/adapter_model.safetensors
                 list_attr_celeba.csv, celeb_organized/celeb_<celebrity>/<image>.jpg     the labels
                 …/score                                                                  the CLIP score, if measured
                 splits/train.pt, valid.pt, test.pt                                       the published split
    imagenette   models_32/model_num_<10 bits>_<copy>/unet/adapter_model.safetensors
    arc          qwen2_arc_data/<name><number>/adapter_model.bin with eval_loss.txt, ARC-Challenge-Acc.txt
                 hparams.csv, whose data row <number> is the adapter's

Layout: moeputt/LoL, diffusion/data_generation, diffusion/run_*.py, diffusion/splits, llm/metanet/data_utils.py and
llm/metanet/hparams.csv. The adapters themselves were never published.

Groups: the celebrity, since labels are per celebrity and the published split has celebrities on two sides (of its 499
test adapters 244 share theirs with a training adapter); the subset of classes; the set of sources.
"""

from __future__ import annotations

import re

from lorascope.errors import ZooError
from lorascope.zoo.layout import Reading
from lorascope.zoo.layouts._lol_arc import is_arc, read_arc
from lorascope.zoo.layouts._lol_celeba import CELEBA_NAME, read_celeba
from lorascope.zoo.layouts._lol_imagenette import IMAGENETTE_NAME, read_imagenette
from lorascope.zoo.tree import Tree

_NAMES: dict[str, re.Pattern[str]] = {"celeba": CELEBA_NAME, "imagenette": IMAGENETTE_NAME}


class LoL:
    """The three sets of *Learning on LoRAs*."""

    name = "lol"
    title = "Learning on LoRAs (CelebA, Imagenette, ARC)"
    reference = "Putterman et al. 2024, arXiv 2410.04207"
    files = "model_0_3_1_2_<celebrity>/unet, model_num_<10 bits>_<copy>/unet, or <name><number>/adapter_model.bin"
    documented = "the authors' code, moeputt/LoL; the adapters were never published"
    unknown = (
        "celeba: the learning rate of index 1 (the code has 0.003, the paper 0.0003), and the seeds; imagenette: which "
        "images; arc: the scale, where no adapter_config.json lies beside the weights, and the split, which the code "
        "takes from the order in which the file system lists the folders"
    )
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        found = [variant for variant, pattern in _NAMES.items() if tree.matching(pattern)]
        return [*found, *(["arc"] if is_arc(tree) else [])]

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if variant == "celeba":
            return read_celeba(tree, published_split=published_split)
        if published_split:
            raise ZooError(
                f"the set {variant} has no published split: the code splits by the order of a listing", file=tree.root
            )
        return read_imagenette(tree) if variant == "imagenette" else read_arc(tree)


LAYOUT = LoL()
