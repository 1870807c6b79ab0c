"""What must not pass in silence: unknown scales, stripped meaning, sites on one weight, quantised bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.conversion import bake, convert
from lorascope.errors import AdapterError, OutputError
from lorascope.formats import Format
from written_formats import WRITTEN, adapter_of, names_for, target_in


def plain(seed: int = 0, scale: float = 4.0, dtype: Any = np.float32) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(rng.standard_normal((6, 2)).astype(dtype), rng.standard_normal((2, 4)).astype(dtype), scale)


@pytest.mark.parametrize("member", WRITTEN.values(), ids=lambda member: member.name)
def test_stripped_metadata_never_change_the_update(member: Format, tmp_path: Path) -> None:
    one, two = target_in(tmp_path, member, "a"), target_in(tmp_path, member, "b")
    site = names_for(member)[0]
    formats.write(adapter_of({site: plain()}), one, format=member.name)
    report = convert(one, two, to=member.name, source_format=member.name, is_metadata_kept=False)
    again = formats.read(two, format=member.name)
    assert report.relative_error == 0 and list(again) == [site]
    assert set(again.provenance.metadata) <= member.needed_metadata


@pytest.mark.parametrize("member", WRITTEN.values(), ids=lambda member: member.name)
def test_the_name_of_the_base_is_written_or_reported(member: Format, tmp_path: Path) -> None:
    one, two = target_in(tmp_path, member, "a"), target_in(tmp_path, member, "b")
    site = names_for(member)[0]
    formats.write(adapter_of({site: plain()}), one, format=member.name)
    report = convert(one, two, to=member.name, source_format=member.name, base_name="owner/base")
    if member.base_field is None:
        assert [loss.what for loss in report.dropped] == ["base model owner/base"]
    else:
        assert formats.read(two, format=member.name).provenance.base_model == "owner/base"


def test_an_unknown_scale_is_not_made_a_stated_one(tmp_path: Path) -> None:
    formats.write(Adapter({"q": plain()}), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file({"q.weight": np.zeros((6, 4), np.float32)}, base)
    with pytest.raises(AdapterError, match="scale unknown"):
        convert(tmp_path / "a", tmp_path / "b.safetensors", to="kohya")
    with pytest.raises(AdapterError, match="scale unknown"):
        bake(base, [tmp_path / "a"], tmp_path / "out.safetensors")
    report = convert(tmp_path / "a", tmp_path / "b.safetensors", to="kohya", scale=4.0)
    assert report.lost == ()
    (update,) = formats.read(tmp_path / "b.safetensors").values()
    assert update.scale == 4.0
    bake(base, [formats.read(tmp_path / "a", scale=4.0)], tmp_path / "out.safetensors")


def test_a_given_scale_is_for_the_sites_that_state_none(tmp_path: Path) -> None:
    name = "lora_te_text_model_encoder_layers_0_self_attn_"
    tensors = {
        f"{name}q_proj.lora_up.weight": plain().B, f"{name}q_proj.lora_down.weight": plain().A,
        f"{name}k_proj.lora_up.weight": plain().B, f"{name}k_proj.lora_down.weight": plain().A,
        f"{name}k_proj.alpha": np.array(1.0, np.float32), f"{name}v_proj.diff": np.ones((6, 4), np.float32),
    }  # fmt: skip
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    adapter = formats.read(tmp_path / "a.safetensors", scale=3.0)
    assert {site.rpartition(".")[2]: update.scale for site, update in adapter.items()} == {
        "q_proj": 3.0,
        "k_proj": 0.5,
        "v_proj": 1.0,
    }
    formats.write(Adapter({"q": plain()}), tmp_path / "p")
    config = tmp_path / "p" / "adapter_config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in stated.items() if key != "lora_alpha"}))
    assert formats.read(tmp_path / "p", scale=2.5)["q"].scale == 2.5
    config.write_text(json.dumps(stated))
    with pytest.raises(AdapterError, match="the file states its scale"):
        formats.read(tmp_path / "p", scale=2.5)


def test_a_value_that_a_dtype_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    big = LowRank(np.full((3, 1), 6e4, np.float16), np.ones((1, 2), np.float16), scale=4.0)
    formats.write(Adapter({"q": big}), tmp_path / "a")
    with pytest.raises(AdapterError, match="too large for the dtype"):
        convert(tmp_path / "a", tmp_path / "b", to="peft", is_scale_folded=True)
    tiny = LowRank(np.full((3, 1), 1e-12, np.float32), np.ones((1, 2), np.float32))
    formats.write(Adapter({"q": tiny}), tmp_path / "t")
    with pytest.raises(AdapterError, match="more than rounding"):
        convert(tmp_path / "t", tmp_path / "b", to="peft", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "t"]
    report = convert(tmp_path / "t", tmp_path / "b", to="peft", dtype="float16", is_loss_allowed=True)
    assert report.relative_error == 1.0


def test_a_folded_scale_goes_into_the_inner_part_of_dora(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.q.lora_A.weight": plain().A, "base_model.model.q.lora_B.weight": plain().B,
        "base_model.model.q.lora_magnitude_vector": np.ones(6, np.float32),
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_dora": True}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    report = convert(tmp_path / "a", tmp_path / "b", to="peft", is_scale_folded=True)
    before, after = formats.read(tmp_path / "a")["q"], formats.read(tmp_path / "b")["q"]
    assert (before.scale, after.scale, report.lost) == (4.0, 1.0, ())
    base = np.random.default_rng(1).standard_normal((6, 4))
    np.testing.assert_allclose(after.delta_weight(np.float64, base=base), before.delta_weight(np.float64, base=base))


def test_two_sites_on_one_weight_are_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"layers.0.q.weight": np.zeros((6, 4), np.float32)}, tmp_path / "base.safetensors")
    adapter = Adapter({"model.layers.0.q": plain(), "base_model.layers.0.q": plain()})
    with pytest.raises(AdapterError, match="two sites of the adapter are one weight"):
        bake(tmp_path / "base.safetensors", [adapter], tmp_path / "out.safetensors")
    overlapping = Adapter({"layers.0.q[0:6]": plain(), "layers.0.q[5:6]": LowRank(np.ones((1, 1)), np.ones((1, 4)))})
    with pytest.raises(AdapterError, match="two sites of the adapter are one weight"):
        bake(tmp_path / "base.safetensors", [overlapping], tmp_path / "out.safetensors")


@pytest.mark.parametrize("site", ["vision_tower.layers.0.q", "text.layers.0.q", "1.layers.0.q"])
def test_a_site_of_another_tower_is_not_in_the_base(site: str, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file({"layers.0.q.weight": np.zeros((6, 4), np.float32)}, base)
    with pytest.raises(AdapterError, match="no such layer") as caught:
        bake(base, [Adapter({site: plain()})], tmp_path / "out.safetensors")
    assert "layers.0.q.weight" in (caught.value.hint or "")
    safetensors.numpy.save_file({f"{site}.weight": np.zeros((6, 4), np.float32)}, base)
    with pytest.raises(AdapterError, match="no such layer"):
        bake(base, [Adapter({"layers.0.q": plain()})], tmp_path / "out.safetensors")


@pytest.mark.parametrize("wrapper", ["model", "base_model.model", "transformer", "module", "language_model.model"])
def test_a_wrapper_around_the_model_may_be_there_or_not(wrapper: str, tmp_path: Path) -> None:
    for stored, site in ((f"{wrapper}.layers.0.q", "layers.0.q"), ("layers.0.q", f"{wrapper}.layers.0.q")):
        base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
        out.unlink(missing_ok=True)
        safetensors.numpy.save_file({f"{stored}.weight": np.zeros((6, 4), np.float32)}, base)
        assert bake(base, [Adapter({site: plain()})], out).tensors == 1


def test_a_component_of_a_pipeline_may_be_named_by_its_folder_or_not(tmp_path: Path) -> None:
    for folder, name in (("unet", "mid.q"), ("text_encoder", "encoder.q"), ("text_encoder_2", "other.q")):
        (tmp_path / "base" / folder).mkdir(parents=True)
        weights = {f"{name}.weight": np.zeros((6, 4), np.float32)}
        safetensors.numpy.save_file(weights, tmp_path / "base" / folder / "model.safetensors")
    (tmp_path / "base" / "model_index.json").write_text("{}")
    assert (
        bake(tmp_path / "base", [Adapter({"unet.mid.q": plain(), "encoder.q": plain()})], tmp_path / "a").tensors == 2
    )
    alone = tmp_path / "base" / "text_encoder"
    assert bake(alone, [Adapter({"text_encoder.encoder.q": plain()})], tmp_path / "b").tensors == 1
    with pytest.raises(AdapterError, match="no such layer"):
        bake(alone, [Adapter({"text_encoder_2.encoder.q": plain()})], tmp_path / "c")


def test_scaled_and_one_byte_weights_are_no_place_to_add_to(tmp_path: Path) -> None:
    for tensors in (
        {"q.weight": np.zeros((6, 4), ml_dtypes.float8_e4m3fn)},
        {"q.weight": np.zeros((6, 4), np.float16), "q.weight_scale_inv": np.ones((1, 1), np.float32)},
    ):
        safetensors.numpy.save_file(tensors, tmp_path / "base.safetensors")
        with pytest.raises(AdapterError, match="quantised"):
            bake(tmp_path / "base.safetensors", [Adapter({"q": plain()})], tmp_path / "out.safetensors")


def test_saved_tensors_of_two_adapters_are_not_chosen_between(tmp_path: Path) -> None:
    base = {"q.weight": np.zeros((6, 4), np.float32), "score.weight": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(base, tmp_path / "base.safetensors")
    one, two = (Adapter({"q": plain()}, leftovers={"score.weight": np.full((2, 2), x, np.float32)}) for x in (1, 2))
    out = tmp_path / "out.safetensors"
    for adapters, weights in (([one, two], None), ([one], [0.5])):
        with pytest.raises(AdapterError, match="cannot be added up or weighed"):
            bake(tmp_path / "base.safetensors", adapters, out, weights=weights)
    bake(tmp_path / "base.safetensors", [one, one], out)
    assert safetensors.numpy.load_file(out)["score.weight"].tolist() == [[1, 1], [1, 1]]


def test_a_pipeline_is_its_components_and_shards_are_those_of_the_index(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}")
    weights = {"down.q.weight": np.zeros((6, 4), np.float32)}
    safetensors.numpy.save_file(weights, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    safetensors.numpy.save_file({"x": np.zeros(1)}, pipeline / "v1-5-pruned.safetensors")
    report = bake(pipeline, [Adapter({"unet.down.q": plain()})], tmp_path / "out")
    assert report.tensors == 1 and (tmp_path / "out" / "model_index.json").is_file()
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name in ("model-00001-of-00001", "model-00001-of-00002"):  # the second is of an older save
        safetensors.numpy.save_file(weights, sharded / f"{name}.safetensors")
    index = {"weight_map": {"down.q.weight": "model-00001-of-00001.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert bake(sharded, [Adapter({"down.q": plain()})], tmp_path / "out2").tensors == 1
    index["weight_map"]["k.weight"] = "../../etc/passwd"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError, match="a shard of the base model is missing"):
        bake(sharded, [Adapter({"down.q": plain()})], tmp_path / "out3")


def test_a_folder_in_the_place_of_a_file_is_not_touched(tmp_path: Path) -> None:
    formats.write(Adapter({"q": plain()}), tmp_path / "a")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="written as a file"):
        convert(tmp_path / "a", tmp_path / "there", to="kohya")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="written as a folder"):
        convert(tmp_path / "a", tmp_path / "file", to="peft")
    assert (tmp_path / "file").read_text() == "kept"


def test_parts_whose_rows_are_not_known_do_not_become_experts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"h.c_attn.lora_A": rng.standard_normal((4, 7)), "h.c_attn.lora_B": rng.standard_normal((10, 2))}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="which rows its parts change"):
        convert(tmp_path / "a.safetensors", tmp_path / "b", to="peft", scale=1.0)


def test_a_bias_or_a_saved_tensor_of_another_module_is_never_taken(tmp_path: Path) -> None:
    names = ("model.dense.weight", "dense.weight", "aux.classifier.weight", "norm.weight")
    tensors = {name: np.zeros((6, 4), np.float32) for name in names} | {"dense.bias": np.zeros(6, np.float32)}
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    safetensors.numpy.save_file(tensors, base)
    biased = LowRank(plain().B, plain().A, bias=np.ones(6, np.float32))
    with pytest.raises(AdapterError, match="bias that the base has not"):
        bake(base, [Adapter({"model.dense": biased})], out)
    for key in ("base_model.model.classifier.weight", "base_model.model.model.layers.0.norm.weight"):
        saved = Adapter({"model.dense": plain()}, leftovers={key: np.ones((6, 4), np.float32)})
        with pytest.raises(AdapterError, match="no place in the base"):
            bake(base, [saved], out)


def test_a_folder_with_other_files_is_not_written_into(tmp_path: Path) -> None:
    for name in ("a", "b"):
        formats.write(Adapter({"q": plain()}), tmp_path / name)
    before = (tmp_path / "b" / "adapter_config.json").read_bytes()
    for to in ("mlx", "peft", "diffusers"):
        with pytest.raises(OutputError, match="not empty"):
            convert(tmp_path / "a", tmp_path / "b", to=to)
    assert (tmp_path / "b" / "adapter_config.json").read_bytes() == before


def test_a_bias_that_vanishes_is_a_loss(tmp_path: Path) -> None:
    update = LowRank(np.zeros((6, 2), np.float32), plain().A, bias=np.full(6, 1e-10, np.float32))
    formats.write(Adapter({"q": update}), tmp_path / "a")
    with pytest.raises(AdapterError, match="more than rounding"):
        convert(tmp_path / "a", tmp_path / "b", to="peft", dtype="float16")


def test_the_name_of_the_base_is_reported_where_an_unedited_file_has_no_configuration(tmp_path: Path) -> None:
    formats.write(Adapter({"q": plain()}), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    report = convert(tmp_path / "a", tmp_path / "b", to="peft", base_name="owner/base")
    assert report.is_identical and formats.read(tmp_path / "b").provenance.base_model is None
    assert [loss.what for loss in report.dropped] == ["base model owner/base"]


def test_invocation_tokens_in_a_gguf_file_are_a_doubt(tmp_path: Path) -> None:
    site = "model.layers.0.mlp.up_proj"
    provenance = Provenance(base_config={"model_type": "llama"}, config={"alora_invocation_tokens": [5, 6]})
    formats.write(Adapter({site: plain()}, provenance), tmp_path / "a.gguf", format="gguf")
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file({f"{site}.weight": np.zeros((6, 4), np.float32)}, base)
    with pytest.raises(AdapterError, match="invocation tokens"):
        convert(tmp_path / "a.gguf", tmp_path / "b", to="peft")
    with pytest.raises(AdapterError, match="invocation tokens"):
        bake(base, [tmp_path / "a.gguf"], tmp_path / "out.safetensors")
