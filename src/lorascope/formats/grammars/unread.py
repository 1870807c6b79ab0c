"""Formats that are told from their keys and named in the error, but not read yet: key patterns, one row each."""

from __future__ import annotations

import re
from collections.abc import Callable

from lorascope.formats.contents import Contents
from lorascope.formats.registry import PLAIN, SPECIFIC, Evidence, Format


def _by_keys(pattern: str, strength: int, container: str | None = None) -> Callable[[Contents], Evidence | None]:
    compiled = re.compile(pattern, re.DOTALL)

    def recognise(contents: Contents) -> Evidence | None:
        if container is not None and contents.container != container:
            return None
        key = next((key for key in contents.tensors if compiled.search(key)), None)
        return None if key is None else Evidence(strength, f"keys such as {key[-80:]}")

    return recognise


FORMATS = (
    Format(
        "adalora",
        "AdaLoRA",
        "https://arxiv.org/abs/2303.10512",
        _by_keys(r"\.lora_E$", SPECIFIC + 10),
    ),
    Format(
        "ia3",
        "IA3",
        "https://arxiv.org/abs/2205.05638",
        _by_keys(r"\.(ia3_l|multi_lora_b)$", PLAIN),
    ),
)
