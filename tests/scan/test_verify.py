"""What `verify` finds, by itself and against a base: everything at once, and nothing in a sound file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import bake, convert
from lorascope.errors import AdapterError
from lorascope.formats.checkpoint import Checkpoint
from lorascope.scan import verify

RNG = np.random.default_rng(0)


def sound(out: int = 6, in_: int = 5, rank: int = 2, dtype: Any = np.float32) -> LowRank:
    return LowRank(RNG.standard_normal((out, rank)).astype(dtype), RNG.standard_normal((rank, in_)).astype(dtype))


def written(folder: Path, **sites: LowRank) -> Path:
    formats.write(Adapter({name.replace("__", "."): update for name, update in sites.items()}), folder / "adapter")
    return folder / "adapter"


def codes(findings: Any) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in findings]


def edited(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def retensored(adapter: Path, **tensors: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    loaded = dict(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(loaded | tensors, path)


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    assert verify(written(tmp_path, a__q=sound(), a__v=sound())) == []


def test_every_non_finite_tensor_is_named(tmp_path: Path) -> None:
    adapter = written(tmp_path, q=sound(), v=sound(), k=sound())
    bad = np.ones((2, 5), np.float32)
    bad[0, 0] = np.nan
    worse = np.full((6, 2), np.inf, np.float32)
    retensored(adapter, **{"base_model.model.q.lora_A.weight": bad, "base_model.model.v.lora_B.weight": worse})
    findings = verify(adapter)
    assert [(one.code, one.site) for one in findings] == [("non-finite", "q"), ("non-finite", "v")]
    assert findings[0].text == "1 of 10 values are NaN or infinite in A"
    assert findings[1].text == "12 of 12 values are NaN or infinite in B"


def test_a_scale_that_is_not_in_the_file_is_a_warning(tmp_path: Path) -> None:
    adapter = written(tmp_path, q=sound())
    (adapter / "adapter_config.json").unlink()
    assert codes(verify(adapter)) == [("config-missing", "warning")]


def test_a_changed_base_is_a_warning(tmp_path: Path) -> None:
    for name in ("pissa", "olora", "corda", "lora_ga", "loftq"):
        adapter = written(tmp_path, q=sound())
        edited(adapter, init_lora_weights=name)
        (finding,) = verify(adapter)
        assert (finding.code, finding.severity) == ("mutated-base", "warning") and name in finding.text


@pytest.mark.parametrize(
    ("old", "new", "named", "is_doubt"),
    [
        ("{", '{"lora_alpha": 64,', "lora_alpha", True),
        ("{", '{"alpha_pattern": {"q": 3},', "alpha_pattern", True),
        ('"alpha_pattern": {}', '"alpha_pattern": {"q": 1, "q": 2}', "alpha_pattern.q", True),
        ("{", '{"task_type": "X",', "task_type", False),
        ("{", '{"r": 2,', "r more than once, always", False),
    ],
)
def test_a_field_that_is_there_twice(tmp_path: Path, old: str, new: str, named: str, *, is_doubt: bool) -> None:
    adapter = written(tmp_path, q=sound())
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(old, new, 1))
    (finding,) = verify(adapter)
    assert (finding.code, finding.severity) == ("repeated-fields", "warning") and named in finding.text
    assert [note.is_doubt for note in formats.read(adapter).notes] == [is_doubt]
    if is_doubt:
        with pytest.raises(AdapterError, match="more than once"):
            convert(adapter, tmp_path / "out.safetensors", to="kohya")


def test_a_field_that_is_there_twice_in_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    formats.write(Adapter({"unet.q": sound()}), path, format="diffusers")
    text = formats.read(path).provenance.metadata["lora_adapter_metadata"]
    twice = '{"unet.lora_alpha": 64,' + text.lstrip()[1:]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"lora_adapter_metadata": twice})
    (finding,) = verify(path)
    assert finding.code == "repeated-fields" and formats.read(path).notes[0].is_doubt


def test_values_that_were_never_trained_or_could_be_smaller(tmp_path: Path) -> None:
    zero = LowRank(np.zeros((6, 2), np.float32), np.ones((2, 5), np.float32))
    assert codes(verify(written(tmp_path, q=zero))) == [("zero-sites", "warning")]
    flat = LowRank(np.ones((6, 2), np.float32), np.ones((2, 5), np.float32))
    assert codes(verify(written(tmp_path, q=flat, v=sound()))) == [("rank-deficient", "warning")]
    mixed = written(tmp_path, q=sound(dtype=np.float16), v=sound())
    assert codes(verify(mixed)) == [("mixed-dtypes", "warning")]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("out", "in_", "rank", "true"), [(6, 5, 4, 3), (300, 200, 8, 5), (1024, 512, 64, 20)])
def test_columns_that_depend_on_others_up_to_rounding(
    tmp_path: Path, dtype: Any, out: int, in_: int, rank: int, true: int
) -> None:
    mix = RNG.standard_normal((true, rank))
    for name, B, A in (  # dependent columns of B, dependent rows of A, and a gauge that is far from balanced
        ("B", RNG.standard_normal((out, true)) @ mix, RNG.standard_normal((rank, in_))),
        ("A", RNG.standard_normal((out, rank)), mix.T @ RNG.standard_normal((true, in_))),
        ("uneven", 64.0 * RNG.standard_normal((out, true)) @ mix, RNG.standard_normal((rank, in_)) / 1024),
    ):
        update = LowRank(B.astype(np.float32).astype(dtype), A.astype(dtype), scale=2.0)
        (finding,) = verify(written(tmp_path / name, q=update, v=sound(out, in_, rank, dtype)))
        assert (finding.code, finding.site) == ("rank-deficient", "q"), name
        assert finding.text.endswith(f"effective rank {true} of {min(rank, in_)}"), name


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_small_directions_above_rounding_are_no_finding(tmp_path: Path, dtype: Any) -> None:
    sizes = np.geomspace(1, 20 * float(np.finfo(dtype).eps), 8)
    B = np.linalg.qr(RNG.standard_normal((300, 8)))[0] * sizes
    A = np.linalg.qr(RNG.standard_normal((200, 8)))[0].T
    assert verify(written(tmp_path, q=LowRank(B.astype(dtype), A.astype(dtype)))) == []


def test_factors_of_one_site_in_two_dtypes(tmp_path: Path) -> None:
    half = [replace(sound(), B=sound(dtype=np.float16).B) for _ in range(2)]
    (finding,) = verify(written(tmp_path, q=half[0], v=half[1]))  # all sites alike
    assert (finding.code, finding.severity) == ("mixed-dtypes", "warning")
    assert finding.text.endswith("float16/float32 at 2")


def test_files_that_do_not_load(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n")
    (finding,) = verify(pointer)
    assert (finding.code, finding.severity) == ("lfs-pointer", "error") and "12345" in finding.text
    header = (
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    double = tmp_path / "double.safetensors"
    double.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert codes(verify(double)) == [("duplicate-keys", "error")]
    twice = written(tmp_path, q=sound())
    retensored(twice, **{"base_model.model.q.lora_A.default.weight": np.ones((2, 5), np.float32)})
    assert codes(verify(twice))[0][1] == "error"


@pytest.mark.parametrize(
    ("style", "severity"),
    [
        ("unet.b.attn1.processor.to_q_lora.{}.weight", "note"),
        ("unet.b.to_q.lora.{}.weight", "note"),
        ("unet.b.to_q.lora_{}.weight", "warning"),  # may have lost its metadata
    ],
)
def test_no_alpha_is_alpha_equal_rank_in_the_older_diffusers_files(tmp_path: Path, style: str, severity: str) -> None:
    halves = ("B", "A") if style.endswith("lora_{}.weight") and "processor" not in style else ("up", "down")
    update = sound()
    tensors = {style.format(half): value for half, value in zip(halves, (update.B, update.A), strict=True)}
    safetensors.numpy.save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    assert codes(verify(tmp_path)) == [("scale-assumed", severity)]


def test_parts_whose_rows_the_format_defines_are_no_finding_and_numbers_of_no_encoder_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 768), "b": (768, 2)}
    tensors = {
        f"w_{half}_{number:03d}": rng.standard_normal(shapes[half]).astype(np.float32)
        for number in range(24)
        for half in "ab"
    }
    safetensors.numpy.save_file(tensors, tmp_path / "whole.safetensors")
    assert codes(verify(tmp_path / "whole.safetensors")) == []
    some = {key: tensor for key, tensor in tensors.items() if key.endswith(("_000", "_001"))}
    safetensors.numpy.save_file(some, tmp_path / "some.safetensors")
    assert codes(verify(tmp_path / "some.safetensors")) == [("numbered-sites", "warning")]


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"peft_version": "0.18.0"}, "note"),
        ({}, "note"),  # a configuration without a version is older
        ({"peft_version": "0.19.0", "base_model_name_or_path": "Qwen/Qwen3-30B-A3B"}, "note"),
        ({"peft_version": "0.19.0", "base_model_name_or_path": "openai/gpt-oss-20b"}, "note"),
        ({"peft_version": "0.19.0"}, "warning"),
        ({"peft_version": "0.19.0", "base_model_name_or_path": "unsloth/Qwen3-30B-A3B"}, "warning"),
        ({"auto_mapping": {"unsloth_fixed": True}}, "warning"),
    ],
)
def test_the_layout_of_experts_is_a_warning_only_where_it_is_open(
    tmp_path: Path, fields: dict[str, Any], severity: str
) -> None:
    tensors = {
        "base_model.model.l.experts.lora_A.weight": RNG.standard_normal((6, 4)).astype(np.float32),
        "base_model.model.l.experts.lora_B.weight": RNG.standard_normal((5, 6)).astype(np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["experts.down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | fields))
    (finding,) = verify(tmp_path)
    assert (finding.code, finding.severity) == ("expert-layout", severity)
    assert ("Unsloth" in finding.text) == ("unsloth" in json.dumps(fields))


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    (tmp_path / "base").mkdir()
    tensors = {
        "model.layers.0.q.weight": np.zeros((6, 5), np.float32),
        "model.layers.1.q.weight": np.zeros((6, 5), np.float32),
        "model.conv.weight": np.zeros((4, 3, 2, 2), np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "base" / "model.safetensors")
    return Checkpoint.open(tmp_path / "base")


def test_sites_are_checked_against_the_base(tmp_path: Path, base: Checkpoint) -> None:
    conv = LowRank(RNG.standard_normal((4, 2)), RNG.standard_normal((2, 12)), layer="conv2d", kernel=(3, 2, 2))
    adapter = Adapter({"model.layers.0.q": sound(dtype=np.float64), "model.conv": conv})
    formats.write(adapter, tmp_path / "fits")
    assert verify(tmp_path / "fits", base=base) == []
    wrong = Adapter({"model.layers.0.q": sound(7, 5), "model.layers.9.q": sound(), "model.layers.1.q": sound()})
    formats.write(wrong, tmp_path / "wrong")
    findings = verify(tmp_path / "wrong", base=base)
    assert [(one.code, one.severity, one.site) for one in findings] == [
        ("base-shape", "error", "model.layers.0.q"),
        ("base-missing", "error", "model.layers.9.q"),
    ]
    assert "[7, 5]" in findings[0].text and "[6, 5]" in findings[0].text


def based(folder: Path, **tensors: Any) -> Checkpoint:
    folder.mkdir()
    safetensors.numpy.save_file(
        {name.replace("__", "."): one for name, one in tensors.items()}, folder / "m.safetensors"
    )
    return Checkpoint.open(folder)


def test_a_quantised_base_is_a_warning_whatever_the_packing(tmp_path: Path) -> None:
    adapter = written(tmp_path, a__q=sound(), a__v=sound())
    whole = np.zeros((6, 5), np.float32)
    scale = np.ones(6, np.float32)
    weights: dict[str, dict[str, Any]] = {
        "int8": {"a__q__weight": whole.astype(np.int8)},
        "float8": {"a__q__weight": whole.astype(ml_dtypes.float8_e4m3fn)},
        "scaled": {"a__q__weight": whole, "a__q__weight_scale": scale},
        "bnb4": {"a__q__weight": np.zeros((15, 1), np.uint8), "a__q__weight__absmax": scale},
        "mlx": {"a__q__weight": np.zeros((6, 1), np.uint32), "a__q__scales": scale},
        "gptq": {"a__q__qweight": np.zeros((1, 6), np.int32), "a__q__scales": scale},
    }
    for name, tensors in weights.items():
        base = based(tmp_path / name, **tensors, a__v__weight=whole)
        (finding,) = verify(adapter, base=base)
        assert (finding.code, finding.severity, finding.site) == ("base-quantised", "warning", "a.q"), name
    wrong = based(tmp_path / "wrong", a__q__weight=np.zeros((7, 5), np.int8), a__v__weight=whole)
    assert codes(verify(adapter, base=wrong)) == [("base-shape", "error"), ("base-quantised", "warning")]


def test_a_bias_that_the_base_has_not_is_an_error(tmp_path: Path) -> None:
    update = replace(sound(), bias=np.ones(6, np.float32))
    adapter = written(tmp_path, a__q=update)
    weight, bias = np.zeros((6, 5), np.float32), np.zeros(6, np.float32)
    base = based(tmp_path / "without", a__q__weight=weight)
    assert [(one.code, one.severity, one.site) for one in verify(adapter, base=base)] == [("base-bias", "error", "a.q")]
    assert verify(adapter, base=based(tmp_path / "with", a__q__weight=weight, a__q__bias=bias)) == []
    saved = written(tmp_path / "saved", a__q=sound())
    edited(saved, bias="all")
    retensored(saved, **{"base_model.model.a.q.base_layer.bias": bias})
    assert codes(verify(saved, base=base)) == [("base-bias", "error"), ("saved-biases", "note")]


def test_savers_drop_and_add_wrappers_in_front_of_names(tmp_path: Path, base: Checkpoint) -> None:
    formats.write(Adapter({"layers.0.q": sound(), "base_model.model.layers.1.q": sound()}), tmp_path / "a")
    assert verify(tmp_path / "a", base=base) == []
    formats.write(Adapter({"q": sound()}), tmp_path / "b")
    assert codes(verify(tmp_path / "b", base=base)) == [("base-missing", "error")]
    tensors = {f"{wrapper}.q.weight": np.zeros((6, 5), np.float32) for wrapper in ("model", "bert")}
    safetensors.numpy.save_file(tensors, tmp_path / "two.safetensors")
    assert codes(verify(tmp_path / "b", base=tmp_path / "two.safetensors")) == [("base-ambiguous", "error")]


def test_what_cannot_make_an_adapter_wrong_is_a_note(tmp_path: Path) -> None:
    wide = LowRank(RNG.standard_normal((3, 5)).astype(np.float32), RNG.standard_normal((5, 3)).astype(np.float32))
    assert codes(verify(written(tmp_path / "wide", q=wide))) == [("rank-above-shape", "note")]
    strong = replace(sound(), scale=100.0)
    uneven = {"q": strong, "k": sound(), "v": sound(), "o": sound()}
    assert codes(verify(written(tmp_path / "uneven", **uneven))) == [("dominant-site", "note")]
    harmless = written(tmp_path / "harmless", q=sound())
    edited(harmless, monteclora_config={"x": 1})
    assert codes(verify(harmless)) == [("config-variant", "note")]
    edited(harmless, alora_invocation_tokens=[1], monteclora_config=None)
    assert codes(verify(harmless)) == [("config-variant", "warning")]


def test_a_head_beside_loralib_factors_is_a_saved_layer(tmp_path: Path) -> None:
    update = sound()
    tensors = {"l.q.lora_A": update.A, "l.q.lora_B": update.B, "classifier.weight": np.ones((2, 3), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "lora.safetensors")
    assert codes(verify(tmp_path / "lora.safetensors")) == [("scale-unknown", "warning"), ("saved-layers", "note")]


def with_head(folder: Path, **saved: np.ndarray) -> Path:
    """An adapter of one site with tensors saved whole."""
    adapter = written(folder, model__q=sound())
    retensored(adapter, **{f"base_model.model.{name.replace('__', '.')}": tensor for name, tensor in saved.items()})
    edited(adapter, modules_to_save=["lm_head"])
    return adapter


def based_with_head(folder: Path, tied: bool | None = None, **tensors: np.ndarray) -> Path:
    base = based(folder, model__q__weight=np.zeros((6, 5), np.float32), **tensors).path
    if tied is not None:
        (base / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": tied}))
    return base


def test_a_saved_tensor_that_does_not_fit_the_base_is_an_error_as_for_bake(tmp_path: Path) -> None:
    small, large = np.ones((4, 5), np.float32), np.ones((7, 5), np.float32)
    adapter = with_head(tmp_path / "a", lm_head__weight=small)
    cases: dict[str, tuple[dict[str, Any], str | None]] = {
        "fits": ({"lm_head__weight": small}, None),
        "shape": ({"lm_head__weight": large}, "base-shape"),
        "none": ({}, "base-missing"),
        "not stored": ({"tied": True, "model__embed_tokens__weight": small}, "base-missing"),
        "tied": ({"tied": True, "model__embed_tokens__weight": small, "lm_head__weight": small}, "base-tied"),
        "untied": ({"tied": False, "model__embed_tokens__weight": small, "lm_head__weight": small}, None),
        "packed": ({"lm_head__weight": small.astype(np.int8)}, "base-quantised"),
    }
    for name, (tensors, code) in cases.items():
        base = based_with_head(tmp_path / name, **tensors)
        found = [one for one in verify(adapter, base=base) if one.code.startswith("base-")]
        assert [one.code for one in found] == ([] if code is None else [code]), name
        if name == "not stored":
            assert found[0].hint is not None and "tied to the embedding" in found[0].hint
        if code is None:
            bake(base, [adapter], tmp_path / f"{name}-out")
        else:
            with pytest.raises(AdapterError):
                bake(base, [adapter], tmp_path / f"{name}-out")


def test_two_saved_tensors_for_one_place_that_differ_are_an_error(tmp_path: Path) -> None:
    one, two = np.ones((4, 5), np.float32), np.zeros((4, 5), np.float32)
    base = based_with_head(tmp_path / "base", lm_head__weight=one)
    adapter = with_head(tmp_path / "a", lm_head__weight=one, lm_head__modules_to_save__weight=two)
    assert ("base-ambiguous", "error") in codes(verify(adapter, base=base))
