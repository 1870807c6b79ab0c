"""Unmodified models of transformers and diffusers, tiny and random, of the classes that people finetune."""

import numpy as np
import pytest
import torch

from lorascope.forge import AdapterStack, Slot, Training, train
from lorascope.forge.kinds import KINDS

COUNT, BATCH = 3, 2
SLOTS = [Slot(2, 4.0, seed) for seed in range(COUNT)]
TRAININGS = [Training(learning_rate=1e-2, steps=4) for _ in range(COUNT)]
EPS = np.finfo(np.float64).eps


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertModel(config), ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"]


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2Model(config), ["wte", "h.0.attn.c_attn", "h.1.mlp.c_proj"]


def qwen2():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
    )
    return transformers.Qwen2Model(config), ["layers.0.self_attn.k_proj", "layers.1.self_attn.v_proj"]


def unet():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    return model, [attention, "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in"]


def batch(model, step):
    """Inputs of three adapters, two examples each."""
    generator = torch.Generator().manual_seed(step)
    if "UNet" in type(model).__name__:
        count = COUNT * BATCH
        return {
            "sample": torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64),
            "timestep": torch.randint(1000, (count,), generator=generator),
            "encoder_hidden_states": torch.randn(count, 5, 12, generator=generator, dtype=torch.float64),
        }
    return {"input_ids": torch.randint(20, (COUNT * BATCH, 7), generator=generator)}


def loss(outputs, targets):
    return outputs[0].flatten(1).square().mean(1)


@pytest.mark.parametrize("make", [bert, gpt2, qwen2, unet])
def test_adapters_train_together_on_an_unmodified_model(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, sites = make()
    model = model.double().eval().requires_grad_(False)
    stack = AdapterStack(model, sites, SLOTS, KINDS["lora"])
    train(stack, lambda step, part: (batch(model, step), None), loss, TRAININGS)
    inputs = batch(model, 99)
    with stack.attached() as adapted, torch.no_grad():
        together = adapted(**inputs)[0]
    for number in range(COUNT):
        assert stack.adapter(number).norm() > 0
        own = {name: value[number * BATCH : (number + 1) * BATCH] for name, value in inputs.items()}
        with stack.adapter(number).apply_to(model), torch.no_grad():
            alone = model(**own)[0]
        differing = (together[number * BATCH : (number + 1) * BATCH] - alone).abs().max()
        assert differing < 1e4 * EPS * alone.abs().max()
