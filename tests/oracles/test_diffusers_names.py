"""diffusers itself: the sites that kohya, XLabs and BFL names stand for are those that its converters name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.formats.kohya_names import flattened, sites_of

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    converters = pytest.importorskip("diffusers.loaders.lora_conversion_utils")

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5


def unet(*, is_sdxl: bool = False) -> Any:
    options: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "sample_size": 8,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    if is_sdxl:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 60,
            "transformer_layers_per_block": (1, 2, 3),
            "use_linear_projection": True,
        }
    return diffusers.UNet2DConditionModel(**options)


def flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def clip() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=4,
        max_position_embeddings=5,
    )
    return transformers.CLIPTextModelWithProjection(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


def paths(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]


@pytest.mark.parametrize(
    ("model", "prefix", "component"),
    [
        (unet, "lora_unet_", "unet"),
        (lambda: unet(is_sdxl=True), "lora_unet_", "unet"),
        (unet, "lycoris_", "unet"),
        (flux, "lora_transformer_", "transformer"),
        (flux, "lora_unet_", "transformer"),
        (sd3, "lycoris_", "transformer"),
        (clip, "lora_te_", "text_encoder"),
        (clip, "lora_te1_", "text_encoder"),
        (clip, "lora_te2_", "text_encoder_2"),
        (t5, "lora_te3_", "text_encoder_3"),
    ],
)
def test_every_layer_of_a_real_model_is_named_again(model: Any, prefix: str, component: str) -> None:
    names = paths(model())
    assert len(names) > 10
    flat = {prefix + name.replace(".", "_"): f"{component}.{name}" for name in names}
    assert sites_of(flat, {}) == flat


def ldm_names() -> list[str]:
    """The adapted layers of SDXL's U-Net under the names of the LDM code, as sd-scripts writes them."""
    attentions = (
        "norm",
        "proj_in",
        "proj_out",
        *(
            f"transformer_blocks.{number}.{layer}"
            for number in (0, 1)
            for layer in (
                "attn1.to_q",
                "attn1.to_k",
                "attn1.to_v",
                "attn1.to_out.0",
                "attn2.to_q",
                "attn2.to_out.0",
                "ff.net.0.proj",
                "ff.net.2",
                "norm1",
            )
        ),
    )
    resnets = ("in_layers.2", "emb_layers.1", "out_layers.3")
    names = ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.2"]
    for number in (1, 2, 4, 5, 7, 8):
        names += [f"input_blocks.{number}.0.{layer}" for layer in resnets]
        names += [f"input_blocks.{number}.1.{layer}" for layer in attentions if number > 3]
    names += ["input_blocks.3.0.op", "input_blocks.6.0.op", "input_blocks.4.0.skip_connection"]
    names += [f"middle_block.{index}.{layer}" for index in "02" for layer in resnets]
    names += [f"middle_block.1.{layer}" for layer in attentions]
    for number in range(9):
        names += [f"output_blocks.{number}.0.{layer}" for layer in (*resnets, "skip_connection")]
        names += [f"output_blocks.{number}.1.{layer}" for layer in attentions if number < 6]
    return [*names, "output_blocks.2.2.conv", "output_blocks.5.2.conv"]


def test_names_of_the_ldm_code_become_those_that_diffusers_makes_of_them() -> None:
    model = unet(is_sdxl=True)
    names = [f"lora_unet_{name.replace('.', '_')}" for name in ldm_names()]
    # norms have no layer in diffusers' converter that tells them apart, the others are told by their number
    ours = sites_of(names, {})
    assert all(site != name for name, site in ours.items())
    tensors: dict[str, Any] = {}
    for number, name in enumerate(names):
        tensors[f"{name}.lora_down.weight"] = torch.full((1, 1), float(number))
        tensors[f"{name}.lora_up.weight"] = torch.full((1, 1), float(number))
    mapped = converters._maybe_map_sgm_blocks_to_diffusers(tensors, model.config)
    converted, _ = converters._convert_non_diffusers_lora_to_diffusers(mapped)
    theirs: dict[str, str] = {}
    for key, tensor in converted.items():
        if ".down." not in key:
            continue
        site = re.sub(r"\.processor\.(to_\w+)_lora\.down\.weight$", r".\1", key)
        site = re.sub(r"\.to_out$", ".to_out.0", re.sub(r"\.lora\.down\.weight$", "", site))
        theirs[names[int(tensor)]] = site
    assert ours == theirs
    known = {f"unet.{name}" for name in paths(model)}
    assert set(ours.values()) <= known


def pair(tensors: dict[str, Any], name: str, out: int, in_: int, rank: int, alpha: float | None = 1.5) -> None:
    tensors[f"{name}.lora_down.weight"] = torch.randn(rank, in_)
    tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank)
    if alpha is not None:
        tensors[f"{name}.alpha"] = torch.tensor(alpha)


def product(converted: dict[str, Any], name: str) -> Any:
    B, A = (converted[f"{name}.lora_{half}.weight"].double().numpy() for half in "BA")
    return B @ A


def rows(converted: dict[str, Any], names: Iterable[str]) -> Any:
    return np.concatenate([product(converted, name) for name in names])


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


def flux_targets(block: int, number: int) -> dict[str, list[str]]:
    """BFL's path → diffusers' names of its rows, for one block of each stream."""
    double, single = f"transformer_blocks.{block}", f"single_transformer_blocks.{number}"
    qkv = ("to_q", "to_k", "to_v")
    return {
        f"double_blocks.{block}.img_attn.qkv": [f"{double}.attn.{name}" for name in qkv],
        f"double_blocks.{block}.txt_attn.qkv": [f"{double}.attn.add_{name[3]}_proj" for name in qkv],
        f"double_blocks.{block}.img_attn.proj": [f"{double}.attn.to_out.0"],
        f"double_blocks.{block}.txt_attn.proj": [f"{double}.attn.to_add_out"],
        f"double_blocks.{block}.img_mlp.0": [f"{double}.ff.net.0.proj"],
        f"double_blocks.{block}.img_mlp.2": [f"{double}.ff.net.2"],
        f"double_blocks.{block}.txt_mlp.0": [f"{double}.ff_context.net.0.proj"],
        f"double_blocks.{block}.txt_mlp.2": [f"{double}.ff_context.net.2"],
        f"double_blocks.{block}.img_mod.lin": [f"{double}.norm1.linear"],
        f"double_blocks.{block}.txt_mod.lin": [f"{double}.norm1_context.linear"],
        f"single_blocks.{number}.linear1": [
            *(f"{single}.attn.{name}" for name in qkv),
            f"{single}.proj_mlp",
        ],
        f"single_blocks.{number}.linear2": [f"{single}.proj_out"],
        f"single_blocks.{number}.modulation.lin": [f"{single}.norm.linear"],
    }


def outputs(path: str) -> int:
    return 21504 if path.endswith("linear1") else 12


def test_the_fused_rows_of_a_kohya_flux_file_are_those_of_diffusers(tmp_path: Path) -> None:
    targets = flux_targets(3, 7)
    tensors: dict[str, Any] = {}
    for path in targets:
        pair(tensors, flattened(f"transformer.{path}"), outputs(path), 5, rank=2)
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    pair(tensors, text, 6, 4, rank=2)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    adapter = formats.read(tmp_path / "x.safetensors")
    converted = converters._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    assert set(adapter) == {
        *(f"transformer.{path}" for path in targets),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    }
    for path, names in targets.items():
        theirs = rows(converted, [f"transformer.{name}" for name in names])
        assert_close(adapter[f"transformer.{path}"].delta_weight(np.float64), theirs)


def test_a_kohya_file_with_diffusers_names_of_flux(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    names = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_add_out",
        "single_transformer_blocks.1.attn.to_k",
        "x_embedder",
        "time_text_embed.guidance_embedder.linear_2",
    ]
    for name in names:
        pair(tensors, f"lora_transformer_{name.replace('.', '_')}", 6, 5, rank=2)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    adapter = formats.read(tmp_path / "x.safetensors")
    converted = converters._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    assert set(adapter) == {f"transformer.{name}" for name in names}
    for site, update in adapter.items():
        assert_close(update.delta_weight(np.float64), product(converted, site))


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_files(tmp_path: Path, prefix: str) -> None:
    shapes = {
        "double_blocks.4.processor.qkv_lora1": ("double_blocks.4.img_attn.qkv", 12, 5),
        "double_blocks.4.processor.qkv_lora2": ("double_blocks.4.txt_attn.qkv", 12, 5),
        "double_blocks.4.processor.proj_lora1": ("double_blocks.4.img_attn.proj", 4, 5),
        "double_blocks.4.processor.proj_lora2": ("double_blocks.4.txt_attn.proj", 4, 5),
        "single_blocks.2.processor.qkv_lora": ("single_blocks.2.linear1[0:12]", 12, 5),
        "single_blocks.2.processor.proj_lora": ("single_blocks.2.linear2", 4, 9),
    }
    tensors: dict[str, Any] = {}
    for name, (_, out, in_) in shapes.items():
        tensors[f"{prefix}{name}.down.weight"] = torch.randn(2, in_)
        tensors[f"{prefix}{name}.up.weight"] = torch.randn(out, 2)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    adapter = formats.read(tmp_path / "x.safetensors")
    assert adapter.provenance.format == "xlabs" and not adapter.notes
    assert set(adapter) == {f"transformer.{site}" for site, _, _ in shapes.values()}
    converted = converters._convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    targets = flux_targets(4, 2)
    for site, update in adapter.items():
        path = site.removeprefix("transformer.").partition("[")[0]
        names = targets[path][:3]  # of linear1 the rows of q, k and v
        assert_close(update.delta_weight(np.float64), rows(converted, [f"transformer.{name}" for name in names]))
    formats.write(adapter, tmp_path / "y.safetensors", format="xlabs")
    again = safetensors.torch.load_file(tmp_path / "y.safetensors")
    assert set(again) == set(tensors) and all(torch.equal(again[key], tensors[key]) for key in tensors)


OUTSIDE = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}


def test_the_control_lora_of_flux(tmp_path: Path) -> None:
    targets = {path: [name] for path, name in OUTSIDE.items()}
    norms: dict[str, str] = {}
    for block in range(38):
        targets |= flux_targets(min(block, 18), block)
        for kind in ("query", "key"):
            norms[f"single_blocks.{block}.norm.{kind}_norm"] = f"single_transformer_blocks.{block}.attn.norm_{kind[0]}"
            for stream, middle in (("img", ""), ("txt", "added_")):
                name = f"transformer_blocks.{min(block, 18)}.attn.norm_{middle}{kind[0]}"
                norms[f"double_blocks.{min(block, 18)}.{stream}_attn.norm.{kind}_norm"] = name
    tensors: dict[str, Any] = {}
    for path in [*targets, "final_layer.adaLN_modulation.1"]:
        tensors[f"{path}.lora_A.weight"] = torch.randn(2, 3)
        tensors[f"{path}.lora_B.weight"] = torch.randn(outputs(path), 2)
        tensors[f"{path}.lora_B.bias"] = torch.randn(outputs(path))
    for path in norms:
        tensors[f"{path}.scale"] = torch.randn(4)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    adapter = formats.read(tmp_path / "x.safetensors")
    assert adapter.provenance.format == "bfl-control" and not adapter.leftovers
    assert len(adapter) == len(targets) + 1 + len(norms)
    converted = converters._convert_bfl_flux_control_lora_to_diffusers(dict(tensors))
    for path, names in targets.items():
        update, names = adapter[f"transformer.{path}"], [f"transformer.{name}" for name in names]
        assert_close(update.delta_weight(np.float64), rows(converted, names))
        bias = np.concatenate([converted[f"{name}.lora_B.bias"].numpy() for name in names])
        np.testing.assert_array_equal(update.delta_bias(np.float32), bias)
    base = np.random.default_rng(0).standard_normal(4)
    for path, name in norms.items():
        theirs = converted[f"transformer.{name}.weight"].double().numpy() - base
        np.testing.assert_allclose(
            adapter[f"transformer.{path}"].delta_weight(np.float64, base=base), theirs, rtol=1e-12
        )


def test_diffusers_reads_what_is_written_as_kohya(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sites: dict[str, Any] = {}
    for component, model in (("unet", unet(is_sdxl=True)), ("text_encoder", clip()), ("text_encoder_2", clip())):
        for name in paths(model):
            if name.endswith(("to_q", "to_out.0", "ff.net.2", "proj_in", "q_proj", "mlp.fc1")):
                B, A = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
                sites[f"{component}.{name}"] = LowRank(B.astype(np.float32), A.astype(np.float32), scale=0.75)
    formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    converted, alphas = converters._convert_non_diffusers_lora_to_diffusers(dict(tensors))
    assert len(alphas) == len(sites) and set(alphas.values()) == {1.5}
    found: dict[str, Any] = {}
    for key, tensor in converted.items():
        if ".down." not in key:
            continue
        site = re.sub(r"(\.processor)?\.to_(\w+)_lora\.down\.weight$", r".to_\2", key)
        site = re.sub(r"\.(lora|lora_linear_layer)\.down\.weight$", "", site)
        site = re.sub(r"\.to_out$", ".to_out.0", site)
        if component := re.match(r"text_encoder(_2)?\.", site):
            site = component[0] + re.sub(r"\.to_q$", ".q_proj", site[component.end() :])
        found[site] = converted[key.replace(".down.", ".up.")].double().numpy() @ tensor.double().numpy()
    assert set(found) == set(sites)
    for site, update in sites.items():
        assert_close(0.75 * found[site], update.delta_weight(np.float64))
