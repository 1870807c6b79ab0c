"""diffusers itself, in both directions: what it saves is read as it fuses, what is written it loads and fuses alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.merge import merge
from lorascope.symmetry.truncation import Cut

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTION = ["conv1", "conv_shortcut", "proj_in"]


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def flux() -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )


def text_encoder() -> Any:
    torch.manual_seed(0)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=20,
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    )


def adapted(model: Any, **fields: Any) -> Any:
    """The model with a peft adapter, every tensor of it random."""
    from peft import LoraConfig

    model.add_adapter(LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ATTENTION} | fields)))
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if ".lora_magnitude" in name:
            value.data.mul_(1 + torch.rand(value.shape, generator=generator))
        elif "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator)
    return model


def values(model: Any) -> dict[str, Any]:
    """Weights and biases under their plain names, wherever peft keeps them."""
    return {
        name.replace(".base_layer.", "."): value.detach().double().numpy().copy()
        for name, value in model.named_parameters()
        if "lora_" not in name
    }


def fused(model: Any) -> dict[str, Any]:
    model.fuse_lora()
    return values(model)


def check(adapter: Adapter, prefix: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """W + ΔW of every site is the fused weight, and no other weight changed."""
    sites = {site.removeprefix(prefix): update for site, update in adapter.items() if site.startswith(prefix)}
    assert sites
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    for site, update in sites.items():
        base, expected = before[f"{site}.weight"], after[f"{site}.weight"]
        result = base + update.delta_weight(np.float64, base=base)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=site)
        changed.discard(f"{site}.weight")
        delta = update.delta_bias(np.float64)
        if delta is not None:
            expected = after[f"{site}.bias"]
            np.testing.assert_allclose(before[f"{site}.bias"] + delta, expected, rtol=1e-5, atol=1e-5)
            changed.discard(f"{site}.bias")
    assert not changed


CASES = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"attn2.to_k": 2, "to_out.0": 4},
        "alpha_pattern": {"attn2.to_k": 7, "attn1.to_q": 1},
    },
    "convolutions": {"target_modules": ATTENTION + CONVOLUTION},
    "DoRA": {"use_dora": True, "target_modules": ATTENTION + CONVOLUTION},
    "lora_bias": {"lora_bias": True, "target_modules": ["to_out.0", "proj_in"]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", [unet, flux])
def test_a_saved_adapter_is_read_as_diffusers_fuses_it(case: str, make: Callable[[], Any], tmp_path: Path) -> None:
    model = adapted(make(), **CASES[case])
    before = values(model)
    model.save_lora_adapter(tmp_path)
    adapter = formats.read(tmp_path)
    assert adapter.provenance.format == "diffusers" and not adapter.notes
    assert {update.kind for update in adapter.values()} == {"dora" if case == "DoRA" else "lora"}
    check(adapter, "", before, fused(model))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", [unet, flux])
def test_a_written_file_is_loaded_and_fused_alike(case: str, make: Callable[[], Any], tmp_path: Path) -> None:
    adapted(make(), **CASES[case]).save_lora_adapter(tmp_path / "saved")
    adapter = formats.read(tmp_path / "saved")
    formats.write(adapter.with_sites(adapter.sites), tmp_path / "written", format="diffusers")

    again = formats.read(tmp_path / "written")
    assert {site: update.scale for site, update in again.items()} == {s: u.scale for s, u in adapter.items()}
    model = make()
    before = values(model)
    model.load_lora_adapter(tmp_path / "written", prefix=None, use_safetensors=True, local_files_only=True)
    check(adapter, "", before, fused(model))
    check(again, "", before, values(model))


def test_the_outputs_of_a_model_are_the_same_after_loading_a_written_file(tmp_path: Path) -> None:
    model = adapted(unet(), rank_pattern={"to_k": 2}, alpha_pattern={"to_v": 1}).eval()
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 2, 12))
    expected = model(*inputs).sample
    model.save_lora_adapter(tmp_path / "saved")
    formats.write(formats.read(tmp_path / "saved"), tmp_path / "written", format="diffusers", dtype="float64")
    loaded = unet().eval()
    assert not torch.allclose(loaded(*inputs).sample, expected, atol=1e-3)
    loaded.load_lora_adapter(tmp_path / "written", prefix=None, use_safetensors=True, local_files_only=True)
    torch.testing.assert_close(loaded(*inputs).sample, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties", "knots-ties"])
def test_a_merge_of_two_saved_adapters_gives_the_merged_outputs(method: str, tmp_path: Path) -> None:
    """Of ranks 3 and 5, convolutions among the sites: W + ΔW of the merge is the weight that diffusers fuses."""
    adapted(unet(), target_modules=ATTENTION + CONVOLUTION).save_lora_adapter(tmp_path / "one")
    adapted(unet(), r=5, target_modules=["to_q", "to_k", "conv1"]).save_lora_adapter(tmp_path / "two")
    both = [formats.read(tmp_path / name) for name in ("one", "two")]
    merged = merge(both, method, weights=[0.7, -0.4], cut=Cut(rank=8)).adapter
    formats.write(merged, tmp_path / "merged", format="diffusers")
    model = unet()
    before = values(model)
    model.load_lora_adapter(tmp_path / "merged", prefix=None, use_safetensors=True, local_files_only=True)
    check(merged, "", before, fused(model))
    if method == "linear":
        site = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        expected = sum(w * one[site].delta_weight(np.float64) for w, one in zip([0.7, -0.4], both, strict=True))
        np.testing.assert_allclose(values(model)[f"{site}.weight"] - before[f"{site}.weight"], expected, atol=1e-5)


def saved_pipeline(folder: Path, *, has_metadata: bool, is_old: bool = False) -> tuple[Any, Any]:
    """A U-Net and a text encoder with adapters, saved as the training scripts of diffusers save them."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    fields = {} if has_metadata else {"r": 4, "lora_alpha": 4}
    network = adapted(unet(), **fields)
    encoder = adapted(text_encoder(), **({"target_modules": ["q_proj", "out_proj"], "lora_alpha": 6} | fields))
    states = [get_peft_model_state_dict(model, adapter_name="default") for model in (network, encoder)]
    if is_old:
        states = [convert_state_dict_to_diffusers(state) for state in states]
    configs = [model.peft_config["default"].to_dict() if has_metadata else None for model in (network, encoder)]
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=states[0],
        text_encoder_lora_layers=states[1],
        unet_lora_adapter_metadata=configs[0],
        text_encoder_lora_adapter_metadata=configs[1],
    )
    return network, encoder


@pytest.mark.parametrize(("has_metadata", "is_old"), [(True, False), (False, False), (False, True)])
def test_a_pipelines_file_is_read_by_component(has_metadata: bool, is_old: bool, tmp_path: Path) -> None:
    network, encoder = saved_pipeline(tmp_path, has_metadata=has_metadata, is_old=is_old)
    adapter = formats.read(tmp_path)
    assert {note.code for note in adapter.notes} == (set() if has_metadata else {"scale-assumed"})
    for prefix, model in (("unet.", network), ("text_encoder.", encoder)):
        before = values(model)
        for module in model.modules():
            if hasattr(module, "merge") and hasattr(module, "lora_A"):
                module.merge()
        check(adapter, prefix, before, values(model))


def test_a_written_pipeline_file_is_loaded_by_the_pipelines_loader(tmp_path: Path) -> None:
    saved_pipeline(tmp_path / "saved", has_metadata=True)
    adapter = formats.read(tmp_path / "saved")
    sites = {
        # ranks and scales that only the patterns can tell, under the text encoder's older and newer names
        site.replace("text_encoder.", "text_encoder.text_model."): LowRank(update.B, update.A, 0.25 * (index % 3 + 1))
        for index, (site, update) in enumerate(adapter.items())
        if isinstance(update, LowRank)
    }
    edited = adapter.with_sites(sites)
    formats.write(edited, tmp_path / "written", format="diffusers")

    loader = diffusers.StableDiffusionPipeline
    state, alphas, metadata = loader.lora_state_dict(
        tmp_path / "written", return_lora_metadata=True, local_files_only=True
    )
    assert alphas is None and metadata
    network, encoder = unet(), text_encoder()
    before = values(network), values(encoder)
    loader.load_lora_into_unet(state, network_alphas=None, unet=network, metadata=metadata)
    loader.load_lora_into_text_encoder(
        state, network_alphas=None, text_encoder=encoder, prefix="text_encoder", metadata=metadata
    )
    check(edited, "unet.", before[0], fused(network))
    for module in encoder.modules():
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            module.merge()
    has_level = any(name.startswith("text_model.") for name in before[1])
    prefix = "text_encoder." if has_level else "text_encoder.text_model."
    check(edited, prefix, before[1], values(encoder))


def test_attention_processors_of_2023(tmp_path: Path) -> None:
    """The keys that ``UNet2DConditionModel.attn_processors`` of 2023 gave ``save_attn_procs``."""
    import safetensors.torch

    model = unet()
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name.endswith((".attn1", ".attn2")):
            for part in ("to_q", "to_k", "to_v", "to_out"):
                layer = getattr(module, part)[0] if part == "to_out" else getattr(module, part)
                out, in_ = layer.weight.shape
                state[f"{name}.processor.{part}_lora.down.weight"] = torch.randn(2, in_, generator=generator)
                state[f"{name}.processor.{part}_lora.up.weight"] = torch.randn(out, 2, generator=generator)
    safetensors.torch.save_file(state, tmp_path / "pytorch_lora_weights.safetensors", {"format": "pt"})
    adapter = formats.read(tmp_path)
    before = values(model)
    model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, local_files_only=True)
    check(adapter, "", before, fused(model))


def test_the_text_encoders_of_2023(tmp_path: Path) -> None:
    """``text_encoder.….self_attn.to_q_lora.down.weight``, which the library still converts."""
    import safetensors.torch

    encoder = text_encoder()
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Any] = {}
    for name, module in encoder.named_modules():
        if name.endswith(".self_attn"):
            for part in ("q", "k", "v", "out"):
                out, in_ = getattr(module, f"{part}_proj").weight.shape
                key = f"text_encoder.{name}.to_{part}_lora"
                state[f"{key}.down.weight"] = torch.randn(2, in_, generator=generator)
                state[f"{key}.up.weight"] = torch.randn(out, 2, generator=generator)
    safetensors.torch.save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    adapter = formats.read(tmp_path)
    before = values(encoder)
    diffusers.StableDiffusionPipeline.load_lora_into_text_encoder(
        dict(state), network_alphas=None, text_encoder=encoder, prefix="text_encoder"
    )
    for module in encoder.modules():
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            module.merge()
    check(adapter, "text_encoder.", before, values(encoder))


def test_a_transformers_file_with_its_prefix(tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict

    source = adapted(flux(), rank_pattern={"to_k": 2}, alpha_pattern={"to_q": 7})
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path / "saved",
        transformer_lora_layers=get_peft_model_state_dict(source, adapter_name="default"),
        transformer_lora_adapter_metadata=source.peft_config["default"].to_dict(),
    )
    adapter = formats.read(tmp_path / "saved")
    assert all(site.startswith("transformer.") for site in adapter) and not adapter.notes
    formats.write(adapter, tmp_path / "x.safetensors", format="diffusers", dtype="float64")
    for path in (tmp_path / "saved" / "pytorch_lora_weights.safetensors", tmp_path / "x.safetensors"):
        model = flux()
        before = values(model)
        model.load_lora_adapter(path, prefix="transformer", use_safetensors=True, local_files_only=True)
        check(adapter, "transformer.", before, fused(model))
