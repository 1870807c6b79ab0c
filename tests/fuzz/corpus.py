"""Small valid files of every format, from which mutants are made: one row a variant, easily extended.

PEFT's types and the kinds of kohya's family come from the tables of the package and the samples of the laws, so that a
new type has its entry here as soon as it has a sample there.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lorascope.formats.kohya_sites import DOTTED_SUFFIXES, SUFFIXES
from lorascope.formats.peft_types import SHARED, TYPES
from lorascope.testing.samples import Sample, random_values

PREFIX = "base_model.model."
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "owner/base", "target_modules": ["q"]}
HALF = np.float16


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return random_values(seed + sum(shape), *shape, dtype=dtype)


def pair(down: str, up: str, rank: int = 2, out: int = 6, in_: int = 4, dtype: Any = np.float32) -> dict[str, Any]:
    return {down: draw(rank, in_, dtype=dtype), up: draw(out, rank, seed=1, dtype=dtype)}


def peft_pairs(*sites: str, dtype: Any = np.float32) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for site in sites:
        tensors |= pair(f"{PREFIX}{site}.lora_A.weight", f"{PREFIX}{site}.lora_B.weight", dtype=dtype)
    return tensors


@cache
def _laws() -> Any:
    """The samples of the laws, from their file: tests are no package."""
    path = Path(__file__).parents[1] / "laws" / "parametrisation_samples.py"
    spec = importlib.util.spec_from_file_location("fuzz_law_samples", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_law_samples"] = module
    spec.loader.exec_module(module)
    return module.SAMPLES


def _peft() -> Iterator[Sample]:
    sites = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    plain = peft_pairs(*sites)
    yield Sample("peft", "peft", plain, config=LORA, metadata={"format": "pt"})
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {".*v_proj": 8, "^model.*": 3}, "use_rslora": True}
    yield Sample("peft-patterns", "peft", peft_pairs(*sites, dtype=HALF), config=LORA | patterns)
    yield Sample("peft-bfloat16", "peft", peft_pairs(*sites, dtype=ml_dtypes.bfloat16), config=LORA)
    yield Sample("peft-no-config", "peft", plain)
    yield Sample("peft-pickle", "peft", plain, "torch", "adapter_model.bin", LORA)
    yield Sample("peft-pickle-old", "peft", plain, "torch-legacy", "adapter_model.bin", LORA)
    other = {
        f"{PREFIX}conv.lora_A.weight": draw(2, 3, 2, 2),
        f"{PREFIX}conv.lora_B.weight": draw(6, 2, 1, 1),
        f"{PREFIX}wte.lora_embedding_A": draw(2, 9),
        f"{PREFIX}wte.lora_embedding_B": draw(6, 2),
        f"{PREFIX}score.weight": draw(3, 6),
        f"{PREFIX}q.base_layer.bias": draw(6),
    }
    yield Sample("peft-layers", "peft", other, config=LORA | {"modules_to_save": ["score"], "bias": "all"})
    dora = peft_pairs("q") | {f"{PREFIX}q.lora_magnitude_vector": draw(6)}
    yield Sample("peft-dora", "peft", dora, config=LORA | {"use_dora": True})
    biased = peft_pairs("q") | {f"{PREFIX}q.lora_B.bias": draw(6)}
    yield Sample("peft-bias", "peft", biased, config=LORA | {"lora_bias": True})
    experts = {f"{PREFIX}mlp.experts.lora_A.weight": draw(6, 4), f"{PREFIX}mlp.experts.lora_B.weight": draw(5, 6)}
    yield Sample("peft-experts", "peft", experts, config=LORA | {"target_parameters": ["mlp.experts.up_proj"]})


def _peft_types() -> Iterator[Sample]:
    for name, row in TYPES.items():
        for index, law in enumerate(_laws().get(row.parametrisation, ())):
            endings = {role: ending for ending, role in reversed(row.roles.items())}
            shared = {role: ending for ending, role in row.shared.items()}
            tensors: dict[str, Any] = {}
            for role, tensor in law.tensors(index, np.float32).items():
                if role in shared:
                    tensors[SHARED + shared[role]] = tensor
                elif role in endings:
                    tensors |= {f"{PREFIX}{site}.{endings[role]}": tensor for site in ("layers.0.q", "layers.0.v")}
            rank = law.roles["w2_b"][0] if "w2_b" in law.roles else 2
            config = {"peft_type": name, "r": rank, "alpha": 4, **law.options}
            yield Sample(f"peft-{name.lower()}-{index}", "peft", tensors, config=config, metadata={"format": "pt"})


_SUFFIX = {role: suffix for suffix, role in reversed(SUFFIXES.items())}
_ALSO = {("lycoris-boft", "blocks"): "oft_blocks", ("locon", "B"): "lora_up.weight", ("locon", "A"): "lora_down.weight"}


def _flat() -> Iterator[Sample]:
    kinds = ("lora", "locon", "loha", "lokr", "full", "lycoris-oft", "lycoris-boft", "lycoris-ia3", "glora")
    metadata = {"ss_network_dim": "4", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"}
    names = ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "lora_te_text_model_x")
    for kind in kinds:
        for index, law in enumerate(_laws().get(kind, ())):
            parts: dict[str, Any] = {}
            for role, tensor in law.tensors(index, np.float32).items():
                key = (kind, role) if kind != "locon" or role == "mid" else ("lora", role)
                suffix = _SUFFIX.get(key) or _ALSO.get((kind, role)) or _SUFFIX.get(("", role))
                if role == "mid":
                    suffix = "lora_mid.weight"
                if suffix is not None:
                    parts[suffix] = tensor
            if kind not in ("full", "lycoris-ia3"):
                parts["alpha"] = np.array(2.0, np.float32)
            flat = {f"{name}.{suffix}": tensor for name in names for suffix, tensor in parts.items()}
            format = "kohya" if kind in ("lora", "locon") else "lycoris"
            yield Sample(f"{format}-{kind}-{index}", format, flat, file="x.safetensors", metadata=metadata)
            dotted = {f"diffusion_model.blocks.0.q.{suffix}": tensor for suffix, tensor in parts.items()}
            yield Sample(f"comfyui-{kind}-{index}", "comfyui", dotted, file="x.safetensors")
    dora = pair(f"{names[0]}.lora_down.weight", f"{names[0]}.lora_up.weight") | {
        f"{names[0]}.alpha": np.array(1.0, HALF),
        f"{names[0]}.dora_scale": draw(6, 1),
        f"{names[0]}.scalar": np.array(0.5, np.float32),
    }
    yield Sample("kohya-dora", "kohya", dora, file="x.safetensors", metadata={"lorascope.sites": json.dumps(names)})
    qkv = "lora_unet_double_blocks_0_img_attn_qkv"
    fused = {
        f"{qkv}.lora_down.weight": draw(6, 4),
        f"{qkv}.lora_up.weight": np.kron(np.eye(3), np.ones((5, 2))).astype(np.float32),
    }
    yield Sample("kohya-fused", "kohya", fused, file="x.safetensors")
    yield Sample("kohya-pickle", "kohya", dora, "torch", "x.pt")
    for up, down in (("lora_B.weight", "lora_A.weight"), ("lora.up.weight", "lora.down.weight")):
        assert {up, down} <= set(DOTTED_SUFFIXES)
        site = "diffusion_model.double_blocks.0.img_attn.qkv"
        tensors = pair(f"{site}.{down}", f"{site}.{up}") | {f"{site}.diff_b": draw(6)}
        yield Sample(f"comfyui-{up}", "comfyui", tensors, file="x.safetensors")


def _diffusers() -> Iterator[Sample]:
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    name = "pytorch_lora_weights.safetensors"
    old = pair(f"{block}.processor.to_q_lora.down.weight", f"{block}.processor.to_q_lora.up.weight")
    yield Sample("diffusers-processors", "diffusers", old, file=name)
    yield Sample("diffusers-processors-pickle", "diffusers", old, "torch", "pytorch_lora_weights.bin")
    middle = pair(f"{block}.to_q.lora.down.weight", f"{block}.to_q.lora.up.weight")
    middle[f"{block}.to_q.alpha"] = np.array(1.0, np.float32)
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    middle |= pair(f"{text}.down.weight", f"{text}.up.weight")
    yield Sample("diffusers-down-up", "diffusers", middle, file=name)
    new = pair(f"{block}.to_q.lora_A.weight", f"{block}.to_q.lora_B.weight")
    new |= {f"{block}.to_q.lora_magnitude_vector": draw(6), f"{block}.to_q.lora_B.bias": draw(6)}
    stated = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"q": 2}})}
    yield Sample("diffusers-peft", "diffusers", new, file=name, metadata=stated)


def _mlx() -> Iterator[Sample]:
    site = "model.layers.0.self_attn.q_proj"
    tensors = {f"{site}.lora_a": draw(4, 2), f"{site}.lora_b": draw(2, 6)}
    config = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 10.0, "keys": ["q"]}}
    yield Sample("mlx", "mlx", tensors, file="adapters.safetensors", config=config)
    yield Sample("mlx-npz", "mlx", tensors, "npz", "adapters.npz")
    experts = {"mlp.up.lora_a": draw(3, 2, 4), "mlp.up.lora_b": draw(3, 6, 2), "embed_tokens.lora_a": draw(9, 2)}
    experts |= {"embed_tokens.lora_b": draw(2, 6), f"{site}.m": draw(6)} | tensors
    yield Sample("mlx-dora", "mlx", experts, "npz", "adapters.npz", config | {"fine_tune_type": "dora"})


def _small() -> Iterator[Sample]:
    lib = pair("h.0.q.lora_A", "h.0.q.lora_B") | {"h.0.c_attn.lora_A": draw(4, 5), "h.0.c_attn.lora_B": draw(6, 2)}
    yield Sample("loralib", "loralib", lib, file="x.safetensors")
    yield Sample("loralib-pickle", "loralib", lib, "torch-legacy", "x.pt")
    clone = {"unet:0:up": draw(6, 2), "unet:0:down": draw(2, 4), "<s1>": draw(8)}
    clone |= {"text_encoder:0:up": draw(6, 2, 1, 1), "text_encoder:0:down": draw(2, 3, 1, 1)}
    stated = {"<s1>": "<embed>", "unet": '["CrossAttention"]', "unet:0:rank": "2"}
    yield Sample("cloneofsimo", "cloneofsimo", clone, file="lora.safetensors", metadata=stated)
    items = {f"[{index}]": draw(6, 2) if index % 2 == 0 else draw(2, 4) for index in range(4)}
    yield Sample("cloneofsimo-list", "cloneofsimo-list", items, "torch", "x.pt", is_list=True)
    sam = {"w_a_000": draw(2, 6), "w_b_000": draw(6, 2), "w_a_001": draw(2, 6), "w_b_001": draw(6, 2)}
    yield Sample("sam-lora", "sam-lora", sam, file="x.safetensors")
    flux = "double_blocks.0.processor.qkv_lora1"
    xlabs = pair(f"{flux}.down.weight", f"{flux}.up.weight") | pair(
        "single_blocks.0.processor.qkv_lora.down.weight", "single_blocks.0.processor.qkv_lora.up.weight"
    )
    yield Sample("xlabs", "xlabs", xlabs, file="x.safetensors")
    qkv = "double_blocks.0.img_attn.qkv"
    control = pair(f"{qkv}.lora_A.weight", f"{qkv}.lora_B.weight") | {
        f"{qkv}.lora_B.bias": draw(6),
        "double_blocks.0.img_attn.norm.query_norm.scale": draw(6),
    }
    yield Sample("bfl-control", "bfl-control", control, file="x.safetensors")
    ada = {"q.lora_A": draw(2, 4), "q.lora_B": draw(6, 2), "q.lora_E": draw(2, 1)}
    yield Sample("adalora", "adalora", ada, file="x.safetensors")
    yield Sample("ia3", "ia3", {"q.ia3_l": draw(6, 1), "k.multi_lora_b": draw(6, 1)}, file="x.safetensors")


def _gguf() -> Iterator[Sample]:
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}
    for architecture, more in (("qwen2", {}), ("llama", {"llama.attention.head_count": 2}), ("bloom", {})):
        tensors: dict[str, Any] = {}
        for name in ("attn_q", "attn_v"):
            tensors |= pair(f"blk.0.{name}.weight.lora_a", f"blk.0.{name}.weight.lora_b", out=8, dtype=HALF)
        tensors |= {"token_embd.weight.lora_a": draw(9, 2), "token_embd.weight.lora_b": draw(4, 2)}
        fields = fields | {"general.architecture": architecture} | more
        yield Sample(f"gguf-{architecture}", "gguf", tensors, "gguf", "adapter.gguf", metadata=fields)


@cache
def corpus() -> tuple[Sample, ...]:
    """All samples; their order and number are part of what the number of a mutant means."""
    parts = (_peft(), _peft_types(), _flat(), _diffusers(), _mlx(), _small(), _gguf())
    return tuple(sample for part in parts for sample in part)
