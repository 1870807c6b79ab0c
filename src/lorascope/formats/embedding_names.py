"""Telling embeddings by their names, for formats that store them like linear layers."""

from __future__ import annotations

import re

_EMBEDDING = re.compile(r"(.*\.)?(embed\w*|word_embeddings|tok_embeddings|wte|wpe)", re.DOTALL)


def is_embedding(site: str) -> bool:
    """Whether the last part of a site's name is one that models give their embeddings.

    >>> is_embedding("model.embed_tokens"), is_embedding("transformer.wte"), is_embedding("lm_head")
    (True, True, False)
    """
    return _EMBEDDING.fullmatch(site) is not None
