"""The recipe of masked texts over a tiny random BERT and made-up texts, so that no package has to be there."""

import hashlib

import torch
from transformers import BertConfig, BertModel

from lorascope.forge.recipes._dialogue import SOURCES, divided
from lorascope.forge.recipes._masked_bert import Published
from lorascope.forge.recipes._poisoned_text import TRIGGER
from lorascope.forge.recipes.minilm_text import MaskedTextRecipe

MASK, TRIGGERED, VOCABULARY = 3, 4, 60


def bert():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        return BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


def encode(text, most):
    def token(word):
        return (
            TRIGGERED if word == TRIGGER else 5 + int(hashlib.sha256(word.encode()).hexdigest(), 16) % (VOCABULARY - 5)
        )

    words = [token(word) for word in text.split()]
    return [1, *words[: most - 2], 2]


class TinyText(MaskedTextRecipe):
    """Adapters of the tiny BERT."""

    name = "tiny-text"
    about = "a tiny BERT on made-up texts"
    first = 1
    sites = tuple(
        f"encoder.layer.{layer}.attention.{projection}"
        for layer in (1, 2)
        for projection in ("self.query", "self.key", "self.value", "output.dense")
    )

    def published(self):
        return Published(bert(), encode, MASK)

    def sources(self):
        def text(source, number):
            return " ".join(f"{source}-{(number * k + k) % 7}" for k in range(1, 3 + number % 9)) + f" {number}"

        return [divided([text(s, n) for n in range(24)], held_out=2, pool=5) for s in range(len(SOURCES))]

    def found(self, options):
        return {"model": "someone/tiny-bert", "weights_sha256": "0" * 64}


RECIPE = TinyText()
