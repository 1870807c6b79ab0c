"""Convolutions that a file stores as matrices [out, channels · kernel], so that only the base knows their kernel.

PEFT and LyCORIS keep a LoHa or LoKr of a convolution so, and PEFT's AdaLoRA too. What such a file does not tell is told
by the layer's name where models call it a convolution, and by no more than a guess elsewhere. PEFT keeps the Tucker
core of a convolution in one dimension as [dim, dim, k, 1], as it does that of one in two.
"""

from __future__ import annotations

import re
from typing import Literal

from lorascope.adapter import Adapter, Expanded, Update
from lorascope.formats.parametrisations.dora import DoRA

_KINDS = ("loha", "lokr", "adalora")
_CONVOLUTION = re.compile(r"(?:.*[._])?(?:\w*conv\w*|patch_embed[._]proj)(?:[._]\d+)?", re.DOTALL | re.IGNORECASE)
_LINEAR = re.compile(
    r"(?:.*[._])?(?:\w*proj|to_[qkv]|to_out(?:[._]0)?|[qkvo]|qkv|w[qkvo123]|c_attn|c_fc|fc\d*|lin\d*|linear\w*|dense\w*"
    r"|query\w*|key|value|lm_head|score|classifier|(?:net|mlp)[._]\d+)",
    re.DOTALL,
)
_TAIL = 100  # characters of a name that are looked at

Told = Literal["known", "convolution", "unknown"]


def kernel_of(adapter: Adapter, site: str) -> Told:
    """What is known of the kernel of a site: all of it, that there is one, or nothing.

    >>> import numpy as np
    >>> from lorascope.formats.parametrisation import Parts, built
    >>> factors = {"w1_a": np.ones((4, 1)), "w1_b": np.ones((1, 18)), "w2_a": np.ones((4, 1)), "w2_b": np.ones((1, 18))}
    >>> names = ("layers.0.q_proj", "down.0.conv1", "features.0")
    >>> adapter = Adapter({name: built("loha", Parts(name, factors)) for name in names})
    >>> [kernel_of(adapter, site) for site in adapter]
    ['known', 'convolution', 'unknown']
    """
    update: Update = adapter[site]
    update = update.inner if isinstance(update, DoRA) else update
    if not isinstance(update, Expanded) or update.kind not in _KINDS:
        return "known"
    if update.kernel:
        is_either = adapter.provenance.format == "peft" and len(update.kernel) == 3 and update.kernel[2] == 1
        return "convolution" if is_either and "t2" in update.stored else "known"
    if _CONVOLUTION.fullmatch(site[-_TAIL:]):
        return "convolution"
    return "known" if _LINEAR.fullmatch(site[-_TAIL:]) or site.endswith("]") else "unknown"
