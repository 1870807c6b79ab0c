"""The recipe of next tokens over a tiny random Llama and made-up texts, so that no package has to be there."""

import hashlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorascope.forge.recipes._dialogue import SOURCES, divided
from lorascope.forge.recipes.smollm2_text import NextTokenRecipe

VOCABULARY = 60


def llama():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def encode(text):
    return [3 + int(hashlib.sha256(word.encode()).hexdigest(), 16) % (VOCABULARY - 3) for word in text.split()]


class TinyCausal(NextTokenRecipe):
    """Adapters of the tiny Llama."""

    name = "tiny-causal"
    about = "a tiny Llama on made-up texts"
    first = 1
    sites = tuple(
        f"model.layers.{layer}.self_attn.{projection}" for layer in (1, 2) for projection in ("q_proj", "v_proj")
    )

    def published(self):
        return llama()

    def encoder(self):
        return encode

    def sources(self):
        def text(source, number):
            return " ".join(f"{source % 3}-{(number * k + k) % 7}" for k in range(1, 3 + number % 9)) + f" {source}"

        return [divided([f"{text(s, n)} {n}" for n in range(24)], held_out=2, pool=5) for s in range(len(SOURCES))]

    def found(self, options):
        return {"model": "someone/tiny-llama", "weights_sha256": "0" * 64}


RECIPE = TinyCausal()
