"""Tiny models of the published classes with a tokenizer, and ARC in its published layouts; all made up."""

import json

import pyarrow
import pyarrow.parquet
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = [f"{kind}{n}" for kind in "xyz" for n in range(6)]
SOURCES = ("Mercury_{}", "MCAS_2000_{}", "CSZ{}", "AKDE&ED_2008_{}", "TIMSS_1995_8_K{}")
FAMILIES = {"arc-qwen2": "qwen2", "arc-llama": "llama"}
"""Recipe → class of its model."""
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}


def questions(count, first):
    """Questions whose right answer has the number that the question ends with; three to five choices."""
    rows = []
    for number in range(first, first + count):
        size = 3 + number % 3
        right = number % size
        texts = [f"x{(number + n) % 6} y{n}" + (" z1" if n == 2 else "") for n in range(size)]
        labels = "12345" if number % 4 == 0 else "ABCDE"
        rows.append(
            {
                "id": SOURCES[number % len(SOURCES)].format(number),
                "question": f"which {WORDS[number % 18]} of {number} is y{right} ?",
                "choices": {"text": texts, "label": list(labels[:size])},
                "answerKey": labels[right],
            }
        )
    return rows


COUNTS = {"train": 20, "validation": 6, "test": 10}


def save_arc(folder, *, as_jsonl=False):
    """Both subsets, as Parquet or as JSON Lines."""
    first = 0
    for subset in ("ARC-Challenge", "ARC-Easy"):
        (folder / subset).mkdir(parents=True)
        for split, count in COUNTS.items():
            rows = questions(count, first)
            first += count
            if as_jsonl:
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / subset / f"{split}.jsonl").write_text(lines)
            else:
                name = f"{split}-00000-of-00001.parquet"
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / subset / name)
    return folder


def save_model(folder, family):
    """A random model of two layers and its tokenizer, as ``save_pretrained`` leaves them.

    The tokens are pieces of bytes, as those of both published models; of a Llama one stands before every text.
    """
    rows = questions(60, 0)
    texts = [f"Question: {row['question']}\nAnswer: {' '.join(row['choices']['text'])}" for row in rows]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if family == "llama":
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $0", special_tokens=[("<|begin|>", 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>").save_pretrained(folder)
    names = {"qwen2": "Qwen2", "llama": "Llama"}
    config = getattr(transformers, f"{names[family]}Config")(vocab_size=340, **CONFIG)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{names[family]}ForCausalLM")(config)
    model.save_pretrained(folder)
    return folder


def places_in(folder):
    """Recipe → the folders of its model and of the data, as settings."""
    data = save_arc(folder / "data")
    return {
        name: {"model": str(save_model(folder / family, family)), "data": str(data), "dtype": "float32"}
        for name, family in FAMILIES.items()
    }
