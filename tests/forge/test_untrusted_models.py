"""Published models that anyone may have filled: what they may not choose, and that whatever they break is one error."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="of the extra [forge]")
pytest.importorskip("diffusers", reason="of the extra [forge]")

import transformers

from forge.arc_files import save_arc, save_model
from forge.tiny_stable_diffusion import VOCABULARY, settings
from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.recipes import RECIPES, _causal_loading, _clip_score, _published

pytestmark = pytest.mark.filterwarnings("ignore:.*torchvision.*")  # diffusers says that it is not there


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A tiny causal language model; read only."""
    return save_model(tmp_path_factory.mktemp("qwen2"), "qwen2")


def changed(folder, copy, name, **keys):
    """A copy of a folder with other values in one of its files."""
    shutil.copytree(folder, copy)
    found = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(found | keys))
    return copy


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", "x.bin", 5])
def test_weights_outside_of_what_is_hashed_are_refused(qwen2, tmp_path, shard):
    model = shutil.copytree(qwen2, tmp_path / "model")
    names = list(load_file(model / "model.safetensors"))
    for place in (tmp_path / "outside.safetensors", model / "sub" / "x.safetensors", model / "x.bin"):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(model / "model.safetensors", place)
    (model / "model.safetensors").rename(model / "other.safetensors")
    shard = str(tmp_path / "outside.safetensors") if shard == "/outside.safetensors" else shard
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(ForgeError, match=r"index\.json: weight_map: names weights that are not among the hashed"):
        _causal_loading.load_causal_lm(model, "qwen2", torch.float32)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "other.safetensors")}))
    assert _causal_loading.load_causal_lm(model, "qwen2", torch.float32) is not None


def test_an_index_or_a_configuration_does_not_name_other_weights(qwen2, tmp_path):
    model = changed(qwen2, tmp_path / "a", "config.json", transformers_weights="x.safetensors")
    with pytest.raises(ForgeError, match=r"config\.json: transformers_weights: the weights are in another file"):
        _causal_loading.load_causal_lm(model, "qwen2", torch.float32)
    model = shutil.copytree(qwen2, tmp_path / "b")
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ForgeError, match=r"index\.json: is no JSON object"):
        _causal_loading.load_causal_lm(model, "qwen2", torch.float32)


@pytest.mark.parametrize("named", ["evil/kern", "flash_attention_2", "eager", {"": "evil/kern"}])
def test_a_configuration_does_not_choose_the_attention(qwen2, tmp_path, named):
    model = changed(qwen2, tmp_path / "model", "config.json", attn_implementation=named)
    published = _causal_loading.load_causal_lm(model, "qwen2", torch.float32)
    assert published.config._attn_implementation == "sdpa"


def test_adapters_and_quantisation_beside_a_base_are_refused(qwen2, tmp_path):
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model = changed(qwen2, tmp_path / "a", "config.json", quantization_config=quantised)
    with pytest.raises(ForgeError, match="quantization_config: the weights are quantised"):
        _causal_loading.load_causal_lm(model, "qwen2", torch.float32)
    adapted = shutil.copytree(qwen2, tmp_path / "b")
    peft = pytest.importorskip("peft")
    whole = transformers.AutoModelForCausalLM.from_pretrained(adapted)
    peft.get_peft_model(whole, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(adapted)
    with pytest.raises(ForgeError, match="an adapter lies beside the model"):
        _causal_loading.load_causal_lm(adapted, "qwen2", torch.float32)


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        ("config.json", {"num_attention_heads": 0}, r"AutoModelForCausalLM: cannot be loaded .*ZeroDivisionError"),
        ("config.json", {"hidden_size": "abc"}, r"Auto\w+: cannot be loaded"),
        ("config.json", {"hidden_act": "evil"}, r"cannot be loaded .*KeyError"),
        ("config.json", {"pad_token_id": 10**9}, r"cannot be loaded .*AssertionError"),
        ("config.json", {"model_type": ["qwen2"]}, r"Auto\w+: cannot be loaded .*TypeError"),
        ("config.json", None, r"Auto\w+: cannot be loaded"),
        ("generation_config.json", None, "cannot be loaded"),
        ("tokenizer.json", None, "AutoTokenizer: cannot be loaded"),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, r"AutoTokenizer: cannot be loaded .*TypeError"),
    ],
)
def test_whatever_a_damaged_model_raises_is_one_error(qwen2, tmp_path, name, keys, match):
    model = changed(qwen2, tmp_path / "model", name, **keys or {})
    if keys is None:
        (model / name).write_text("[1]")
    with pytest.raises(ForgeError, match=match):
        _causal_loading.encoder_of(model)
        _causal_loading.load_causal_lm(model, "qwen2", torch.float32)


def test_tokens_that_the_model_does_not_know_are_refused(qwen2, tmp_path):
    model = shutil.copytree(qwen2, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({token: number + 1000 for token, number in vocabulary.items() if len(token) == 1})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    given = {"model": str(model), "data": str(save_arc(tmp_path / "data")), "dtype": "float32"}
    with pytest.raises(ForgeError, match=r"the tokens are not those of the model \(expected below 340"):
        forge("arc-qwen2", 1, tmp_path / "zoo", settings=given)


def architecture(there, **others):
    """The base of a recipe of photographs, some of whose folders are others."""
    given = settings(there, "celeba") | others
    return RECIPES["celeba-sd14"].architecture({**RECIPES["celeba-sd14"].option_defaults, **given})


SCHEDULE, TOKENS, VAE = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "vae/config.json"


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        (SCHEDULE, {"num_train_timesteps": 0}, "cannot be loaded|num_train_timesteps"),
        (SCHEDULE, {"num_train_timesteps": "x"}, "DDPMScheduler: cannot be loaded"),
        (SCHEDULE, {"beta_schedule": "x"}, r"DDPMScheduler: cannot be loaded .*NotImplementedError"),
        (SCHEDULE, {"beta_end": float("nan")}, "betas: is not as it must be"),
        (SCHEDULE, {"trained_betas": [0.5]}, "num_train_timesteps: is not as it must be"),
        (SCHEDULE, {"steps_offset": 10**6}, "sampling_steps: the schedule of the model has no such times"),
        (SCHEDULE, {"timestep_spacing": "x"}, "sampling_steps: the schedule of the model has no such times"),
        (SCHEDULE, None, "DDPMScheduler: cannot be loaded"),
        (TOKENS, {"model_max_length": 10**30}, "model_max_length: texts are of another length"),
        (TOKENS, {"model_max_length": "x"}, "model_max_length: texts are of another length"),
        (TOKENS, {"model_max_length": 0}, "model_max_length: texts are of another length"),
        (TOKENS, {"pad_token": None}, "no text can be turned into tokens"),
        (TOKENS, None, "CLIPTokenizer: cannot be loaded"),
        ("tokenizer/vocab.json", None, "CLIPTokenizer: cannot be loaded"),
        ("tokenizer/vocab.json", {"a": 10**5}, "the tokens are not those of the model"),
        ("unet/config.json", {"attention_head_dim": 0}, r"UNet2DConditionModel: cannot be loaded .*ZeroDivision"),
        ("unet/config.json", {"quantization_config": {"quant_method": "x"}}, "the weights are quantised"),
        (VAE, {"block_out_channels": []}, r"AutoencoderKL: cannot be loaded .*IndexError"),
        (VAE, {"scaling_factor": "x"}, "scaling_factor: is not as it must be"),
        (VAE, {"scaling_factor": 0}, "scaling_factor: is not as it must be"),
        ("text_encoder/config.json", None, "is no JSON object"),
    ],
)
def test_a_damaged_stable_diffusion_is_refused_before_forging(there, tmp_path, name, keys, match):
    model = changed(there / "model", tmp_path / "model", name, **keys or {})
    if keys is None:
        (model / name).write_text("[1]")
    with pytest.raises(ForgeError, match=match):
        architecture(there, model=model)


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        ("preprocessor_config.json", {"crop_size": {"height": 10**6, "width": 10**6}}, "crop_size: images would be"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 0}}, "size: images would be"),
        ("preprocessor_config.json", {"crop_size": {"height": 24, "width": 24}}, r"cannot be brought .*ValueError"),
        ("preprocessor_config.json", {"image_mean": [1]}, r"images cannot be brought .*ValueError"),
        ("preprocessor_config.json", None, "CLIPImageProcessorPil: cannot be loaded"),
        ("tokenizer_config.json", None, "CLIPTokenizer: cannot be loaded"),
        ("config.json", None, "is no JSON object"),
    ],
)
def test_a_damaged_scorer_is_refused_before_forging(there, tmp_path, name, keys, match):
    clip = changed(there / "clip", tmp_path / "clip", name, **keys or {})
    if keys is None:
        (clip / name).write_text("[1]")
    with pytest.raises(ForgeError, match=match):
        architecture(there, clip=clip)


def test_a_pickle_that_is_no_weights_is_refused_and_not_executed(there, tmp_path):
    clip = shutil.copytree(there / "clip", tmp_path / "clip")
    (clip / "model.safetensors").unlink()
    (clip / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {tmp_path / 'sprung'}'\ntR.".encode())
    with pytest.raises(ForgeError, match=r"CLIPModel: cannot be loaded .*UnpicklingError"):
        architecture(there, clip=clip)
    assert not (tmp_path / "sprung").exists()


def test_an_index_beside_the_parts_of_a_stable_diffusion_names_hashed_weights(there, tmp_path):
    model = shutil.copytree(there / "model", tmp_path / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, model / "unet" / "other.safetensors")
    of_all = dict.fromkeys(load_file(weights), "other.safetensors")
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": of_all}))
    with pytest.raises(ForgeError, match=r"not among the hashed files .*found other\.safetensors"):
        architecture(there, model=model)


def test_the_hash_of_a_scorer_is_of_all_that_its_tokens_are_read_from(there, tmp_path):
    clip = shutil.copytree(there / "clip", tmp_path / "clip")
    scorer = _clip_score.ClipScorer(clip)
    before = _published.digest_of(clip, _clip_score.NEEDED)
    scorer.tokenizer.save_pretrained(tmp_path / "tokens")
    shutil.copy(tmp_path / "tokens" / "tokenizer.json", clip)  # beside vocab.json and merges.txt
    _published.digest_of.cache_clear()
    assert _published.digest_of(clip, _clip_score.NEEDED) != before


def test_the_text_encoder_and_the_scorer_do_not_choose_their_attention(there, tmp_path):
    keys = {"attn_implementation": "evil/kern"}
    clip = changed(there / "clip", tmp_path / "clip", "config.json", **keys)
    model = changed(there / "model", tmp_path / "model", "text_encoder/config.json", **keys)
    base = architecture(there, model=model, clip=clip)
    configs = base.text_encoder.config, base.scorer.model.config.text_config, base.scorer.model.config.vision_config
    assert {config._attn_implementation for config in configs} == {"sdpa"}
    assert max(base.tokenizer.get_vocab().values()) == len(VOCABULARY) - 1
