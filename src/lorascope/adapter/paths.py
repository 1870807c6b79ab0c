"""Which path of a base a site means: the same path, but for the wrappers that frameworks put around a model.

    model.layers.0.q                      layers.0.q                              are one layer
    model.language_model.layers.0.q       language_model.model.layers.0.q         are one layer
    vision_tower.layers.0.q               layers.0.q                              are two

A model with a head holds the base model under a name of its class (``model``, ``bert``); PEFT, ``torch.compile`` and
data parallelism wrap it once more; savers add and drop these. Every other part of a path tells one tower, component
or block of a model from another, and a site without its like is not in the base.

Source: ``base_model_prefix`` of the model classes in transformers 5.23, those of one tower.
"""

from __future__ import annotations

from collections.abc import Iterable

_FRAMEWORKS = ("base_model", "module", "_orig_mod", "_fsdp_wrapped_module")
_WHOLE_MODELS = ("model", "transformer", "backbone", "language_model", "diffusion_model", "unet")
_CLASSES = (
    "albert", "bert", "biogpt", "convbert", "convnext", "convnextv2", "deberta", "deit", "beit", "dinov2", "distilbert",
    "electra", "ernie", "esm", "gpt_neox", "hubert", "layoutlm", "led", "longformer", "mobilebert", "mpnet",
    "nomic_bert", "rembert", "resnet", "roberta", "roformer", "rwkv", "segformer", "swin", "swinv2", "vit", "wav2vec2",
    "wavlm",
)  # fmt: skip

_EXCHANGED = frozenset({*_FRAMEWORKS, "model", "language_model"})  # transformers 5 has new places for these two

WRAPPERS = frozenset({*_FRAMEWORKS, *_WHOLE_MODELS, *_CLASSES})
"""Leading parts of a path that may be there or not."""


class Paths:
    """Paths of a base, found by the name that an adapter has for them.

    Args:
        paths: the paths as the base has them.
        wrappers: further leading parts that may be there or not, such as the folder of a pipeline's component.

    >>> Paths(["model.layers.0.q", "lm_head"]).find("layers.0.q")
    ['model.layers.0.q']
    >>> Paths(["layers.0.q"]).find("vision_tower.layers.0.q")
    []
    """

    def __init__(self, paths: Iterable[str], wrappers: Iterable[str] = ()) -> None:
        self._wrappers = WRAPPERS | frozenset(wrappers)
        self._exact = frozenset(paths)
        self._bare: dict[str, list[str]] = {}
        for path in sorted(self._exact):
            self._bare.setdefault(self._without_wrappers(path), []).append(path)

    def find(self, path: str) -> list[str]:
        """The path itself where the base has it, else all that have more, fewer or other wrappers in front."""
        if path in self._exact:
            return [path]
        bare = self._without_wrappers(path)
        like = self._bare.get(bare, [])
        if found := [one for one in like if one.endswith(f".{path}") or path.endswith(f".{one}")]:
            return found
        return [one for one in like if all(_is_exchanged(whole, bare) for whole in (one, path))]

    def _without_wrappers(self, path: str) -> str:
        parts = path.split(".")
        first = next((at for at, part in enumerate(parts[:-1]) if part not in self._wrappers), len(parts) - 1)
        return ".".join(parts[first:])


def _is_exchanged(path: str, bare: str) -> bool:
    """Whether all that a path has in front may stand at another place, or not at all."""
    return _EXCHANGED.issuperset(path.removesuffix(bare).split(".")[:-1])


def alike(path: str, paths: Iterable[str]) -> list[str]:
    """Up to two paths that end as this one does, for messages: the same last two parts, else the last one."""
    known = list(paths)
    parts = path.split(".")
    for count in (2, 1):
        tail = ".".join(parts[-count:])
        if found := [one for one in known if one == tail or one.endswith(f".{tail}")]:
            return found[:2]
    return []
