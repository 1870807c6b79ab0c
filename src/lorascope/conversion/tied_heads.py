"""Heads that are the embedding: where a model ties them, one cannot be baked without the other.

    tie_word_embeddings true       the head of the loaded model is the embedding, whatever is stored for it
    the two are stored alike       the same, where config.json does not say the contrary

A change of the embedding then moves the head too, as it does when PEFT merges; before, PEFT changes the embedding
alone. A change of the head alone would be lost when the model is loaded.

Source: https://github.com/huggingface/transformers, src/transformers/modeling_utils.py (``tie_weights``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.base_facts import HEADS
from lorascope.formats.checkpoint import Checkpoint

_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared", "tokens_embed"}
)


@dataclass(frozen=True)
class TiedHeads:
    """What follows from ties.

    Args:
        followers: stored head → the embedding that it is, and whose changes it gets too.
        notes: what a person should know, in sentences.
    """

    followers: Mapping[str, str]
    notes: tuple[str, ...]


def tied_heads(checkpoint: Checkpoint, added: Collection[str], replaced: Mapping[str, NDArray[Any]]) -> TiedHeads:
    """What follows from ties between embeddings and heads for a change of some tensors.

    Args:
        checkpoint: the base.
        added: the names of the tensors that something is added to.
        replaced: name → what takes a tensor's place.

    Raises:
        AdapterError: where a head would be changed that is its embedding once the model is loaded.
    """
    heads = _of_modules(checkpoint, HEADS)
    followers: dict[str, str] = {}
    notes: list[str] = []
    for embedding in _of_modules(checkpoint, _EMBEDDINGS):
        is_moved = embedding in added or embedding in replaced
        mates = [head for head in heads if checkpoint.tensors[head].shape == checkpoint.tensors[embedding].shape]
        for head in mates:
            if not (is_moved or head in added or head in replaced) or not _are_tied(checkpoint, embedding, head):
                continue
            if head in added or (head in replaced and not _is_alike(replaced, head, embedding, added)):
                raise AdapterError(
                    "the adapter changes a head that is tied to the embedding, so that its change would be lost when "
                    "the model is loaded",
                    file=checkpoint.path,
                    key=head,
                    found=f"tied to {embedding}",
                    hint="untie the base first: tie_word_embeddings false in its config.json",
                )
            if head not in replaced:
                followers[head] = embedding
        if is_moved and checkpoint.is_head_tied is not False and (followers or not mates):
            notes.append(_note(embedding, is_known=bool(followers) or checkpoint.is_head_tied is True))
    return TiedHeads(followers, tuple(notes))


def _note(embedding: str, *, is_known: bool) -> str:
    if is_known:
        return (
            f"{embedding} is the head too (tied): the baked head moves with it, as when PEFT merges; before merging, "
            "the adapter changes the embedding alone"
        )
    return f"no head is stored beside {embedding}: where the model ties the two, its head moves with the embedding"


def _of_modules(checkpoint: Checkpoint, modules: Collection[str]) -> list[str]:
    return [
        name
        for name in checkpoint.tensors
        if name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in modules
    ]


def _are_tied(checkpoint: Checkpoint, embedding: str, head: str) -> bool:
    if checkpoint.is_head_tied is not None:
        return checkpoint.is_head_tied
    one, other = checkpoint.tensors[embedding], checkpoint.tensors[head]
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _is_alike(replaced: Mapping[str, NDArray[Any]], head: str, embedding: str, added: Collection[str]) -> bool:
    """Whether head and embedding are replaced by the same numbers."""
    return embedding in replaced and embedding not in added and np.array_equal(replaced[head], replaced[embedding])
