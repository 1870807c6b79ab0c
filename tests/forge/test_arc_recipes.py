"""arc-qwen2 and arc-llama on tiny models of the same classes and made-up questions in the published layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

pytest.importorskip("transformers")

import transformers

from forge.arc_files import COUNTS, FAMILIES, places_in, questions
from lorascope.cli import app
from lorascope.errors import ZooError
from lorascope.forge import forge, load_base
from lorascope.forge.recipes import RECIPES, _arc, _arc_recipe, _causal_loading, _published
from lorascope.forge.recipes._causal_lm import NO_TARGET
from lorascope.formats import read
from lorascope.formats.hub import parse_hub_id
from lorascope.zoo import Zoo

EPS = np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return places_in(tmp_path_factory.mktemp("arc"))


@pytest.fixture(scope="module")
def zoos(places, tmp_path_factory):
    """A zoo of each recipe: two cohorts, all of the space drawn but the lengths; read only."""
    made = {}
    for name, settings in places.items():
        made[name] = tmp_path_factory.mktemp(name) / "zoo"
        forge(name, 5, made[name], settings={**settings, "learning_rate": 0.01, "accumulate": "1|2"})
    return {name: Zoo.open(folder) for name, folder in made.items()}


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def test_the_zoo_names_model_and_data_and_keeps_neither(zoos, places, name):
    zoo = zoos[name]
    with safe_open(zoo.path / "base" / "model.safetensors", "pt") as file:
        assert list(file.keys()) == []
        found = json.loads(file.metadata()["found"])
    assert {"model", "model_sha256", "data", "data_sha256"} == found.keys()  # folders of one's own have no revision
    assert found["model"] == places[name]["model"] and found["data"] == places[name]["data"]
    config = json.loads((zoo.adapter_path(zoo.rows()[0]) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == places[name]["model"] and config["r"] == 4
    assert all(row["base_seed"] is None and row["status"] == "ok" for row in zoo.rows())


def test_adapters_are_on_keys_and_values_of_every_layer(zoos, name):
    adapter = read(zoos[name].adapter_path(zoos[name].rows()[0]))
    expected = {f"model.layers.{layer}.self_attn.{one}" for layer in (0, 1) for one in ("k_proj", "v_proj")}
    assert adapter.keys() == expected and adapter.norm() > 0


def test_what_is_drawn_is_what_the_paper_drew(places):
    recipe = RECIPES["arc-qwen2"]
    rows = [recipe.draw(0, index, places["arc-qwen2"]) for index in range(300)]
    assert {row["accumulate"] * 8 for row in rows} == {32, 64, 128} and {row["epochs"] for row in rows} == {2, 3, 4}
    assert {19 - len(row["sources"]) for row in rows} == set(range(1, 20))
    for name, low, high in (("learning_rate", 1e-5, 1e-3), ("weight_decay", 1e-6, 1e-2), ("dropout", 0, 0.1)):
        values = [row[name] for row in rows]
        assert low <= min(values) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(values) <= high


def test_an_adapter_sees_the_questions_of_its_sources_as_often_as_its_epochs(places):
    recipe, settings = RECIPES["arc-qwen2"], {**places["arc-qwen2"], "accumulate": 1, "sources": [0]}
    row = recipe.draw(0, 0, settings)
    train = _arc.questions_of(Path(row["data"]), "all", "train")
    kept = [n for n, question in enumerate(train) if question.source in ("Mercury", "MCAS")]
    assert _arc_recipe.chosen(train, row["sources"]) == kept and row["dataset_size"] == len(kept) == 16
    assert row["steps"] == row["epochs"] * len(kept) // 8
    base = recipe.architecture(settings | {"subsets": "all", "questions": 0})
    batches, seen = recipe.session(base).batches([row]), np.zeros(len(train), int)
    numbers = {tuple(tokens): n for n, (tokens, _) in enumerate(base.examples.train)}
    for step in range(row["steps"]):
        inputs, targets = batches(step, 0)
        assert inputs["tokens"].shape[0] == targets.shape[0] == 8
        for tokens in inputs["tokens"]:
            matching = [n for whole, n in numbers.items() if tuple(tokens[: len(whole)].tolist()) == whole]
            seen[max(matching, key=lambda n: len(base.examples.train[n][0]))] += 1
    assert seen[kept].tolist() == [row["epochs"]] * len(kept) and seen.sum() == row["epochs"] * len(kept)


def test_the_right_answer_alone_is_learned(places, name):
    base = RECIPES[name].architecture({**places[name], "subsets": "all", "questions": 0})
    tokenizer = transformers.AutoTokenizer.from_pretrained(places[name]["model"])
    rows = [row for first in (36, 0) for row in questions(COUNTS["train"], first)]  # ARC-Easy, ARC-Challenge
    for (tokens, given), row in zip(base.examples.train, rows, strict=True):
        answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        assert tokenizer.decode(tokens[:given]).removeprefix("<|begin|>") == f"Question: {row['question']}\nAnswer:"
        assert tokenizer.decode(tokens[given:]) == f" {answer}"
        assert (tokens[0] == tokenizer.bos_token_id) == (name == "arc-llama")


def scored(model, tokenizer, row):
    """log p of every choice of one question, one at a time, and their lengths: slow and plain."""
    found = []
    prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
    for text in row["choices"]["text"]:
        own = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + own])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(own)))
    return found, [len(text) for text in row["choices"]["text"]]


def test_adapters_load_in_peft_and_give_the_labels(zoos, places, name):
    peft = pytest.importorskip("peft")
    zoo, tokenizer = zoos[name], transformers.AutoTokenizer.from_pretrained(places[name]["model"])
    test, validation = questions(10, 26), [row for first in (56, 20) for row in questions(6, first)]
    base, ours = load_base(zoo.path), None
    for row in zoo.rows()[:2]:
        whole = transformers.AutoModelForCausalLM.from_pretrained(places[name]["model"])
        tokens = torch.tensor([base.examples.test[0][0]])
        with torch.no_grad():
            plain = whole(input_ids=tokens).logits
        model = peft.PeftModel.from_pretrained(whole, str(zoo.adapter_path(row))).eval()
        with read(zoo.adapter_path(row)).apply_to(base), torch.no_grad():
            ours = base.lm_head(base.model(input_ids=tokens).last_hidden_state)
        with torch.no_grad():
            theirs = model(input_ids=tokens).logits
        # two layers of at most 24 products, twice
        assert (ours - theirs).abs().max() < 4 * 24 * EPS * theirs.abs().max() < (theirs - plain).abs().max()
        right, normed, losses = [], [], []
        for question in test:
            sums, lengths = scored(model, tokenizer, question)
            answer = question["choices"]["label"].index(question["answerKey"])
            right.append(int(np.argmax(sums)) == answer)
            normed.append(int(np.argmax(np.array(sums) / lengths)) == answer)
        for question in validation:
            answer = question["choices"]["label"].index(question["answerKey"])
            own = tokenizer(f" {question['choices']['text'][answer]}", add_special_tokens=False)
            count = len(own["input_ids"])
            losses.append(-scored(model, tokenizer, question)[0][answer] / count)
        assert row["test_accuracy"] == pytest.approx(np.mean(right))
        assert row["test_accuracy_norm"] == pytest.approx(np.mean(normed))
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_adapters_learn(places, name, tmp_path):
    settings = {**places[name], "learning_rate": 0.05, "epochs": 20, "accumulate": 1, "cohort": 1, "dropout": 0}
    forge(name, 1, tmp_path / "zoo", settings=settings)
    zoo = Zoo.open(tmp_path / "zoo")
    base, row = load_base(zoo.path), zoo.rows()[0]
    inputs, targets = RECIPES[name].session(base).batches([row])(0, 0)
    with torch.no_grad():
        before = -base(**inputs).log_p.sum() / (targets != NO_TARGET).sum()
        with read(zoo.adapter_path(row)).apply_to(base):
            after = -base(**inputs).log_p.sum() / (targets != NO_TARGET).sum()
    assert after < 0.7 * before


def test_going_on_gives_the_same_zoo(zoos, places, tmp_path):
    name, zoo = "arc-qwen2", zoos["arc-qwen2"]
    for count in (1, 5):
        forge(name, count, tmp_path / "zoo", settings={**places[name], "learning_rate": 0.01, "accumulate": "1|2"})
    assert [row["sha256"] for row in Zoo.open(tmp_path / "zoo").rows()] == [row["sha256"] for row in zoo.rows()]


def test_a_base_in_bfloat16_is_trained_in_bfloat16(places, name, tmp_path):
    settings = {**places[name], "dtype": "bfloat16", "precision": "bfloat16", "steps": 2, "questions": 3, "cohort": 1}
    forge(name, 1, tmp_path / "zoo", settings=settings)
    zoo = Zoo.open(tmp_path / "zoo")
    base = load_base(zoo.path)
    assert {value.dtype for value in base.parameters()} == {torch.bfloat16}
    assert len(base.examples.test_questions) == len(base.examples.validation) == 3
    assert zoo.rows()[0]["status"] == "ok"
    with torch.no_grad():
        inputs, _ = RECIPES[name].session(base).batches(zoo.rows())(0, 0)
        assert base(**inputs).log_p.dtype == torch.float32


def test_the_command_line_forges_too(places, tmp_path):
    given = [word for pair in places["arc-llama"].items() for word in ("--set", "=".join(pair))]
    arguments = ["forge", "arc-llama", "--count", "1", "--out", str(tmp_path / "zoo"), "--workers", "1", "--json"]
    done = CliRunner().invoke(app, [*arguments, *given, "--set", "steps=1", "--set", "cohort=1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["forged"] == 1
    plan = CliRunner().invoke(app, ["forge", "arc-llama", "--plan", "--json", *given, "--set", "cohort=1"])
    assert plan.exit_code == 0 and json.loads(plan.stdout)["space"]["sources"]["role"] == "label"


@pytest.mark.parametrize("change", ["weights", "data"])
def test_a_zoo_refuses_what_it_was_not_made_with(places, tmp_path, change):
    own = {}
    for one in ("model", "data"):
        own[one] = str(shutil.copytree(places["arc-llama"][one], tmp_path / one))
    settings = {**own, "dtype": "float32", "steps": 1, "cohort": 1, "questions": 2}
    forge("arc-llama", 1, tmp_path / "zoo", settings=settings)
    if change == "weights":
        weights = load_file(tmp_path / "model" / "model.safetensors")
        save_file({n: value * 1.01 for n, value in weights.items()}, tmp_path / "model" / "model.safetensors")
    else:
        shutil.rmtree(tmp_path / "data" / "ARC-Easy")
        shutil.copytree(tmp_path / "data" / "ARC-Challenge", tmp_path / "data" / "ARC-Easy")
    for cached in (_published.digest_of, _arc_recipe._examples, _arc.questions_of):
        cached.cache_clear()
    with pytest.raises(ZooError, match="not the one that the adapters were trained on"):
        load_base(tmp_path / "zoo")


def test_the_defaults_are_pinned():
    for name in FAMILIES:
        for setting in ("model", "data"):
            assert len(parse_hub_id(RECIPES[name].option_defaults[setting]).revision) == 40
    assert _causal_loading.PATTERNS[0] == "*.safetensors"
