"""Weight2Token: LoRAs of CelebA and CUB (diffusion), GoEmotions and ARC-Easy (language). Han et al., arXiv 2603.15990.

    celeba       models_rank8_full/model_<seed>_<lr>_<steps>_<accumulation>_<prompt>_<celebrity>/unet
                 celeba_labels.csv; plan.csv or results.csv
    cub          the same with <image> for <celebrity>, cub_labels.csv; cub_plan.csv or results.csv
    goemotions   goemotions/<model>/lora_goemotions_<model>_<run>.safetensors, labels.json; lora_label_info.csv or
                 metadata_gpu_<k>.csv
    runs         runs/trial_<run>/trial_<run>.safetensors, trial_<run>_config.json; results*.csv
    train.pt, valid.pt, test.pt (celeba, cub)                    the published split

Layout: xiaolonghan2000/Weight2Token, diffusion/data_generation, diffusion/data_prepare, llm/classification and
llm/regression/collect: what its scripts write. The adapters are on the hub (Xiaolong-Han/w2t-diffusion-celeba-lora,
Xiaolong-Han/w2t-llm-goemotions-lora); how the files lie there could not be found, and may differ.

Groups: the celebrity; the species of a bird, where the table tells it; the text that an adapter was trained on, by its
hash; of the runs, the hash of the subset of the training data, and otherwise the run.
"""

from __future__ import annotations

from lorascope.errors import ZooError
from lorascope.zoo.layout import Reading
from lorascope.zoo.layouts._w2t_diffusion import diffusion_variants, read_diffusion
from lorascope.zoo.layouts._w2t_language import language_variants, read_goemotions, read_runs
from lorascope.zoo.tree import Tree


class Weight2Token:
    """The sets of *W2T*."""

    name = "w2t"
    title = "Weight2Token (CelebA, CUB, GoEmotions, ARC-Easy)"
    reference = "Han et al. 2026, arXiv 2603.15990"
    files = (
        "model_<seed>_<4 indices>_<number>/unet with celeba_labels.csv or cub_labels.csv; lora_<data>_<model>_<run>."
        "safetensors with labels.json; trial_<run>/trial_<run>.safetensors"
    )
    documented = "the authors' code, xiaolonghan2000/Weight2Token; the layout of the files on the hub was not found"
    unknown = (
        "celeba, cub: the hyperparameters without plan.csv or results.csv, beyond their indices; goemotions: the text "
        "itself; runs: the questions of each; whether the files on the hub lie as the code writes them"
    )
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        return [*diffusion_variants(tree), *language_variants(tree)]

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if variant in ("celeba", "cub"):
            return read_diffusion(tree, variant, published_split=published_split)
        if published_split:
            raise ZooError(f"the set {variant} has no published split in files of this layout", file=tree.root)
        return read_goemotions(tree) if variant == "goemotions" else read_runs(tree)


LAYOUT = Weight2Token()
