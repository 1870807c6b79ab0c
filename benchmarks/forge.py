"""Batched forging against training one adapter at a time with peft: same base, data, steps and rates; one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from pathlib import Path

import torch

from lorascope.forge.cohort import train_rows
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes.digits_vit import digits
from lorascope.formats import write
from report import report

ALONE = 4


def figures() -> dict[str, float]:
    """Ratios of time per adapter, and how far the two ways differ."""
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    recipe, test = RECIPES["digits-vit"], digits().test
    base = recipe.pretrain({**recipe.option_defaults, "base_steps": 200}).eval().requires_grad_(False)
    weights = base.state_dict()
    session = recipe.session(base)
    rows = [recipe.draw(0, index, {"steps": 100}) for index in range(recipe.cohort)]
    everyone = [True] * recipe.cohort
    train_rows(recipe, base, [row | {"steps": 3} for row in rows], everyone)
    start = time.perf_counter()
    stack = train_rows(recipe, base, rows, everyone)
    trained = time.perf_counter() - start
    with stack.attached() as model, torch.no_grad():
        measured = session.measure(model, rows)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(recipe.cohort):
            write(stack.adapter(number), Path(folder) / str(number))
    whole = time.perf_counter() - start

    initial = train_rows(recipe, base, rows, [False] * recipe.cohort)
    setup = alone = accuracy = logits = 0.0
    for number, row in enumerate(rows[:ALONE]):
        start = time.perf_counter()
        fresh = recipe.architecture({}).eval()
        fresh.load_state_dict(weights)
        config = LoraConfig(r=row["rank"], lora_alpha=row["alpha"], target_modules=list(recipe.sites))
        one = get_peft_model(fresh, config)
        for site, update in initial.adapter(number).items():
            with torch.no_grad():
                A = one.base_model.model.get_submodule(site).lora_A["default"].weight
                A.copy_(torch.tensor(update.factors().A))
        one.eval()
        setup += time.perf_counter() - start
        batches = session.batches([row])
        start = time.perf_counter()
        parameters = [value for value in one.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=row["learning_rate"], weight_decay=0.0)
        for step in range(row["steps"]):
            images, classes = batches(step, 0)
            session.loss(one(images), classes).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        alone += time.perf_counter() - start
        with torch.no_grad():
            theirs = one(test.pixels)
            with stack.adapter(number).apply_to(base):
                ours = base(test.pixels)
        correct = float((theirs.argmax(-1) == test.classes).double().mean())
        accuracy = max(accuracy, abs(correct - measured[number]["test_accuracy"]))
        logits = max(logits, float((ours - theirs).abs().max() / theirs.abs().max()))
    each = trained / recipe.cohort
    return {
        "ratio_without_peft_setup": alone / ALONE / each,
        "ratio_with_peft_setup": (alone + setup) / ALONE / each,
        "largest_difference_of_test_accuracy": accuracy,
        "largest_difference_of_logits_relative": logits,
        "adapters_per_minute_per_core": 60 * recipe.cohort / whole,
    }


if __name__ == "__main__":
    report("forge", figures)
