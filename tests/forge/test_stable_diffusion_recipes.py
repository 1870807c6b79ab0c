"""celeba-sd14 and imagenette-sd14 whole, on a tiny random Stable Diffusion and CLIP of the published classes."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="of the extra [forge]")
pytest.importorskip("diffusers", reason="of the extra [forge]")

import diffusers
from typer.testing import CliRunner

from forge.tiny_stable_diffusion import PEOPLE, settings, write_model
from lorascope.cli import app
from lorascope.conversion.convert import convert
from lorascope.errors import ForgeError, ZooError
from lorascope.forge import forge, load_base
from lorascope.forge.cohort import train_rows
from lorascope.forge.recipes import RECIPES, _dreambooth, _published
from lorascope.forge.recipes._dreambooth import JUDGED
from lorascope.forge.recipes._photographs import photograph, pixels
from lorascope.forge.recipes.celeba_sd14 import LABELS
from lorascope.formats import read
from lorascope.zoo import Zoo, split_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torchvision.*")  # diffusers says that it is not there

CELEBA, IMAGENETTE = RECIPES["celeba-sd14"], RECIPES["imagenette-sd14"]
EPS = float(np.finfo(np.float32).eps)
DEPTH = 100  # layers that a sample goes through, rounded up
LEVEL = 1 / 255  # a sample is rounded to whole levels, so that rounding can move it by one


@pytest.fixture(scope="module")
def zoo(there, tmp_path_factory):
    """A zoo of persons in two cohorts; read only."""
    folder = tmp_path_factory.mktemp("persons") / "zoo"
    forge("celeba-sd14", 3, folder, settings=settings(there, "celeba"))
    return Zoo.open(folder)


def drawn_as(zoo, row):
    """A row of the manifest with the options of its zoo, as the session sees it."""
    return row | {name: zoo.header["settings"][name] for name in CELEBA.options}


def state(folder):
    files = [path for name in ("cohorts/*", "base/*", "adapters/*/*") for path in folder.glob(name)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_labels_are_truthful(there, zoo):
    rows = zoo.rows()
    assert len(rows) == 3 and {row["status"] for row in rows} == {"ok"}
    for row in rows:
        paths = CELEBA.photographs(drawn_as(zoo, row))
        numbers = [int(path.stem) for path in paths]
        assert len(set(numbers)) == row["images"] == 3
        # who and what is on photograph n follows from n: see write_celeba
        assert {(number - 1) % PEOPLE + 1 for number in numbers} == {row["identity"]}
        for place, label in enumerate(LABELS):
            assert row[label] == (sum(number // 2**place % 2 for number in numbers) >= 1.5), label
        inner = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
        assert row["images_sha256"] == hashlib.sha256(inner.encode()).hexdigest()
        assert row["group"].endswith(f"person-{row['identity']}") and row["split"] == split_of(row["group"])
    assert len({row["images_sha256"] for row in rows}) == len(rows)


def test_adapters_are_trained_as_the_paper_says(there):
    rows = [CELEBA.draw(0, n, {"data": str(there / "celeba"), "images": 4}) for n in range(80)]
    for name, values in (
        ("learning_rate", {1e-4, 3e-4, 1e-3, 3e-3}),
        ("steps", {100, 133, 167, 200}),
        ("accumulate", {1, 2}),
        ("prompt", {"celebrity", "person", "thing", "skd"}),
    ):
        assert {row[name] for row in rows} == values
    training = CELEBA.training(rows[0])
    assert (training.optimiser, training.weight_decay, training.clip) == ("adamw", 0.01, 1.0)
    assert (rows[0]["rank"], rows[0]["alpha"], rows[0]["resolution"]) == (4, 27, 512)
    other = IMAGENETTE.draw(0, 0, {"data": str(there / "imagenette")})
    given = {"rank": 32, "alpha": 27, "learning_rate": 3e-4, "steps": 150, "accumulate": 1, "prompt": "sks_photo"}
    assert {name: other[name] for name in given} == given and other["images"] == len(other["classes"])


def test_the_zoo_keeps_no_weights_of_the_base_and_names_them(there, zoo):
    with safe_open(zoo.path / "base" / "model.safetensors", "pt") as file:
        assert not list(file.keys())
        found = json.loads(file.metadata()["found"])
    assert found["model"] == str(there / "model") and len(found["model_sha256"]) == len(found["clip_sha256"]) == 64
    config = json.loads((zoo.adapter_path(zoo.rows()[0]) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(there / "model")
    base = load_base(zoo.path)
    published = diffusers.UNet2DConditionModel.from_pretrained(there / "model" / "unet").state_dict()
    assert all(torch.equal(value, published[name]) for name, value in base.unet.state_dict().items())


def test_a_model_that_has_changed_is_refused(there, tmp_path):
    shutil.copytree(there / "model", tmp_path / "model")
    given = settings(there, "celeba", model=tmp_path / "model", steps=1, samples=0, prompts="")
    forge("celeba-sd14", 1, tmp_path / "zoo", settings=given)
    load_base(tmp_path / "zoo")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    _published.digest_of.cache_clear()  # a hash is read once in a process
    with pytest.raises(ZooError, match="not the one that the adapters were trained on"):
        load_base(tmp_path / "zoo")


def test_a_larger_count_extends_a_zoo_to_the_same_result(there, zoo, tmp_path):
    forge("celeba-sd14", 1, tmp_path / "zoo", settings=settings(there, "celeba"))
    forge("celeba-sd14", 3, tmp_path / "zoo", settings=settings(there, "celeba"))
    assert state(tmp_path / "zoo") == state(zoo.path)


def test_a_batch_trains_as_one_by_one(there, zoo):
    base = load_base(zoo.path)
    given = {**zoo.header["settings"], "steps": 6, "accumulate": {"one of": [1, 2]}}
    rows = [CELEBA.draw(0, index, given) for index in range(4)]
    assert {row["accumulate"] for row in rows} == {1, 2}
    together = train_rows(CELEBA, base, rows, [True] * 4)
    masked = train_rows(CELEBA, base, rows, [True] + [False] * 3)
    assert torch.equal(together.values[0], masked.values[0])
    for number, row in enumerate(rows):
        alone = train_rows(CELEBA, base, [row], [True])
        # products of other shapes round otherwise, and Adam's m/√v turns that into a share of the step itself
        moved = row["steps"] * row["learning_rate"]
        assert (together.values[number] - alone.values[0]).abs().mean() < 1e-3 * moved


def test_what_is_learned_is_the_noise_on_the_latents_of_the_own_photographs(there, zoo, monkeypatch):
    base = load_base(zoo.path)
    rows = [drawn_as(zoo, row) for row in zoo.rows()]
    means = [base.moments([pixels(one) for one in own_photographs(row)])[0] for row in rows]
    found = iter([(mean, torch.zeros_like(mean)) for mean in means])
    monkeypatch.setattr(base, "moments", lambda images: next(found))
    batches = CELEBA.session(base).batches(rows)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # the "scaled_linear" of Stable Diffusion
    kept = torch.from_numpy(np.cumprod(1 - betas)).float()
    prompts = base.tokenizer([row["prompt"] for row in rows], padding="max_length", max_length=10, return_tensors="pt")
    embedded = base.text_encoder(prompts["input_ids"])[0]
    seen = [[] for _ in rows]
    for step in range(6):
        inputs, noise = batches(step, 0)
        share = kept[inputs["timestep"]].view(-1, 1, 1, 1)
        latents = (inputs["sample"] - (1 - share).sqrt() * noise) / share.sqrt() / base.vae.config.scaling_factor
        for number, (own, latent) in enumerate(zip(means, latents, strict=True)):
            distances = (own - latent).abs().amax((1, 2, 3))
            seen[number].append(int(distances.argmin()))
            assert distances.min() < 1e-3 < distances.sort().values[1]
        assert torch.allclose(inputs["encoder_hidden_states"], embedded, rtol=0, atol=DEPTH * EPS)
        assert not torch.equal(noise[0], noise[1]) and abs(float(noise.std()) - 1) < 0.2
    for number, row in enumerate(rows):
        every = row["accumulate"]  # of two parts the first was looked at
        if every == 1:
            assert sorted(seen[number][:3]) == sorted(seen[number][3:]) == [0, 1, 2]
        assert len(set(seen[number])) > 1
    assert {row["accumulate"] for row in rows} >= {1}


def own_photographs(row):
    return [photograph(path, 16) for path in CELEBA.photographs(row)]


def test_latents_are_drawn_as_the_vae_draws_them(there, zoo):
    base = load_base(zoo.path)
    values = torch.stack([pixels(one) for one in own_photographs(drawn_as(zoo, zoo.rows()[0]))])
    found = base.drawn(base.moments(list(values)), torch.Generator().manual_seed(3))
    with torch.no_grad():
        drawn = base.vae.encode(values).latent_dist.sample(generator=torch.Generator().manual_seed(3))
    expected = drawn * base.vae.config.scaling_factor
    assert (found - expected).abs().max() < DEPTH * EPS * expected.abs().max()


def test_weights_that_are_missing_are_not_made_up(there, tmp_path):
    shutil.copytree(there / "model", tmp_path / "model")
    shutil.copytree(there / "clip", tmp_path / "clip")
    for option, file in (("model", "unet/diffusion_pytorch_model"), ("clip", "model")):
        path = tmp_path / option / f"{file}.safetensors"
        options = completed(there, **{option: str(tmp_path / option)})
        weights = load_file(path)
        del weights[sorted(weights)[-1]]
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(ForgeError, match="weights are missing"):
            CELEBA.architecture(options)
        path.write_bytes(b"not safetensors")
        with pytest.raises(ForgeError, match="cannot be loaded"):
            CELEBA.architecture(options)


@pytest.mark.full
def test_the_sites_of_the_large_model_are_those_of_the_paper():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # as 1.4 is configured
    adapted = tuple(f".{end}" for end in CELEBA.option_defaults["sites"].split(","))
    sites = [module for name, module in unet.named_modules() if name.endswith(adapted)]
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    # what the dense model of arXiv 2410.04207 takes in, as its code has it
    assert len(sites) == 64 and sum(site.weight.numel() for site in sites) == 46_755_840


def test_a_base_that_predicts_the_velocity_learns_it(there, tmp_path):
    write_model(tmp_path / "model", "v_prediction")
    base = CELEBA.architecture(completed(there, model=tmp_path / "model"))
    latents, noise, times = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    noisy, target = base.with_noise(latents, noise, times)
    share = base.schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
    assert torch.allclose(noisy, share.sqrt() * latents + (1 - share).sqrt() * noise)
    assert torch.allclose(target, share.sqrt() * noise - (1 - share).sqrt() * latents)
    base.schedule.register_to_config(prediction_type="sample")
    with pytest.raises(ForgeError, match="no loss"):
        base.with_noise(latents, noise, times)


def completed(there, **others):
    given = settings(there, "celeba", **others)
    return {name: given.get(name, default) for name, default in CELEBA.option_defaults.items()}


def test_adapters_learn(there, tmp_path):
    learnt = {"steps": 40, "learning_rate": 0.01, "samples": 0, "prompts": "", "sites": "to_q,to_k,to_v,to_out.0"}
    forge("celeba-sd14", 2, tmp_path / "zoo", settings=settings(there, "celeba", **learnt))
    zoo = Zoo.open(tmp_path / "zoo")
    base = load_base(zoo.path)
    rows = [drawn_as(zoo, row) for row in zoo.rows()]
    with torch.no_grad():
        before = CELEBA.session(base)._losses(base, rows)
    for row, loss in zip(rows, before, strict=True):
        assert row["loss"] < 0.9 * loss
        assert row["generation_score"] is None and row["clip_score"] is None


def test_what_is_measured_again_is_what_the_manifest_says(there, zoo):
    base = load_base(zoo.path)
    for row in zoo.rows():
        session = CELEBA.session(base)
        with read(zoo.adapter_path(row)).apply_to(base), torch.no_grad():
            again = session.measure(base, [drawn_as(zoo, row)])[0]
        assert again["loss"] == pytest.approx(row["loss"], rel=DEPTH * EPS)
        for name in ("generation_score", "clip_score"):
            assert again[name] == pytest.approx(row[name], abs=LEVEL)
        assert {name: again[name] for name in LABELS} == {name: row[name] for name in LABELS}


def test_the_published_pipeline_draws_the_same_images_with_the_adapter(there, zoo, tmp_path):
    pytest.importorskip("peft")
    row = drawn_as(zoo, max(zoo.rows(), key=lambda row: row["learning_rate"]))
    convert(zoo.adapter_path(row), tmp_path / "lora.safetensors", to="diffusers")
    base = load_base(zoo.path)
    noise = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(7))
    adapter = read(zoo.adapter_path(row))
    with torch.no_grad():
        plain = base.sample(base, noise, base.embedded(["a cat"]), 2, 7.5)[0]
        with adapter.apply_to(base):
            ours = base.sample(base, noise, base.embedded(["a cat"]), 2, 7.5)[0]
    pipeline = diffusers.StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=diffusers.UNet2DConditionModel.from_pretrained(there / "model" / "unet"),
        scheduler=diffusers.DDIMScheduler.from_pretrained(there / "model" / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors", local_files_only=True)
    inputs = {"timestep": torch.tensor([400]), "encoder_hidden_states": base.embedded(["a cat"])}
    with torch.no_grad(), adapter.apply_to(base):
        expected = base(sample=noise, **inputs)
    with torch.no_grad():
        found = pipeline.unet(noise, **inputs).sample
        assert (found - expected).abs().max() < DEPTH * EPS * expected.abs().max()
        assert (found - base(sample=noise, **inputs)).abs().max() > 1e-3 * expected.abs().max()
    images = pipeline("a cat", latents=noise, num_inference_steps=2, guidance_scale=7.5, height=16, width=16).images
    theirs, mine, without = (np.asarray(image, np.int16) for image in (images[0], ours, plain))
    assert np.abs(theirs - mine).max() <= 1 < np.abs(theirs - without).max()


def test_peft_loads_an_adapter_into_the_base(there, zoo):
    peft = pytest.importorskip("peft")
    row = zoo.rows()[0]
    base = load_base(zoo.path)
    inputs = {"sample": torch.randn(2, *base.latent_shape), "timestep": torch.tensor([5, 500])}
    inputs |= {"encoder_hidden_states": base.embedded(["a", "b"])}
    with read(zoo.adapter_path(row)).apply_to(base), torch.no_grad():
        ours = base(**inputs)
    theirs = peft.PeftModel.from_pretrained(load_base(zoo.path), str(zoo.adapter_path(row))).eval()
    with torch.no_grad():
        assert (theirs(**inputs) - ours).abs().max() < DEPTH * EPS * ours.abs().max()


def test_the_clip_score_is_the_one_of_transformers(there, zoo):
    transformers = pytest.importorskip("transformers")
    base, row = load_base(zoo.path), drawn_as(zoo, zoo.rows()[0])
    clip = transformers.CLIPModel.from_pretrained(there / "clip")
    noises = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(42))
    expected = []
    with read(zoo.adapter_path(row)).apply_to(base), torch.no_grad():
        for noise, prompt in zip(noises, ["a cat", "b"], strict=True):
            image = base.sample(base, noise.unsqueeze(0), base.embedded([prompt]), 2, 7.5)[0]
            given = base.scorer.processor(images=[image], return_tensors="pt")
            whole = clip(**given, **base.scorer.tokenizer([prompt], return_tensors="pt"))
            expected.append(float(whole.logits_per_image / clip.logit_scale.exp()))
    assert row["clip_score"] == pytest.approx(np.mean(expected), abs=LEVEL)


def test_prompts_are_those_that_are_given_or_the_usual_ones():
    assert _dreambooth._prompts(" a dog | b|") == ["a dog", "b"] and not _dreambooth._prompts("")
    assert _dreambooth._prompts(CELEBA.option_defaults["prompts"]) == _dreambooth.PROMPTS
    assert len(set(_dreambooth.PROMPTS)) == 12 and not any("|" in prompt for prompt in _dreambooth.PROMPTS)


def test_samples_are_judged_against_the_own_photographs(there, zoo):
    base = load_base(zoo.path)
    own = own_photographs(drawn_as(zoo, zoo.rows()[0]))
    embedded = base.scorer.of_images(own)
    assert _dreambooth.embedding_score(embedded[:2], embedded) == pytest.approx(1)
    together = base.scorer.of_images([*own, *own])
    assert torch.equal(together[: len(own)], embedded)


def test_through_the_command_line_with_convolutions_and_half_precision(there, tmp_path):
    given = settings(there, "imagenette", sites="to_k,to_out.0,conv1,conv_shortcut", rank=2, samples=1, steps=2)
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    out = ["--count", "1", "--out", str(tmp_path / "zoo"), "--workers", "1", "--precision", "bfloat16", "--json"]
    result = CliRunner().invoke(app, ["forge", "imagenette-sd14", *out, *words])
    assert result.exit_code == 0, result.output
    zoo = Zoo.open(tmp_path / "zoo")
    row = zoo.rows()[0]
    sites = set(read(zoo.adapter_path(row)))
    ends = {site.rsplit(".", 1)[-1] for site in sites}
    assert ends == {"to_k", "0", "conv1", "conv_shortcut"}
    unet = load_base(zoo.path).unet
    assert {f"unet.{name}" for name, _ in unet.named_modules() if name.endswith(".conv1")} < sites
    assert row["classes"] and row["images"] == len(row["classes"]) and row["clip_score"] is not None


@pytest.mark.parametrize(
    ("others", "match"),
    [({"resolution": 17}, "multiple of 2"), ({"sites": "to_q,to_w"}, "no layer whose path ends so")],
)
def test_a_base_that_cannot_be_so_is_refused(there, others, match):
    with pytest.raises(ForgeError, match=match):
        CELEBA.architecture(completed(there, **others))


def test_the_loss_is_over_all_times(zoo):
    seen = []

    def model(sample, timestep, encoder_hidden_states):
        seen.append(int(timestep[0]))
        return torch.zeros_like(sample)

    session = CELEBA.session(load_base(zoo.path))
    found = session._losses(model, [drawn_as(zoo, zoo.rows()[0])])
    assert seen == [int(1000 * (number + 0.5) / JUDGED) for number in range(JUDGED)]
    assert found[0] == pytest.approx(1, abs=0.1)  # of a model that predicts nothing, the noise's own square
