"""The base install: a fresh environment without PyTorch inspects adapters and predicts with ridge."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lorascope
from lorascope.predict import MODELS, fit_predictor
from planted import planted_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The bin folder of a virtual environment with nothing but the base install."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    bin_ = folder / "venv" / "bin"
    install = [bin_ / "pip", "install", "--quiet", "-c", source / "constraints.txt", source]
    subprocess.run(install, check=True, capture_output=True)
    return bin_


def run(environment, *arguments):
    return subprocess.run([environment / "lorascope", *arguments], capture_output=True, text=True, check=False)


def test_it_has_no_pytorch(environment):
    code = "import importlib.util as u; print([m for m in ('torch', 'sklearn', 'pyarrow') if u.find_spec(m)])"
    found = subprocess.run([environment / "python", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_it_inspects_and_predicts_as_the_full_install_does(environment, tmp_path):
    dataset = planted_dataset(60)
    predictor = fit_predictor(dataset, "size", MODELS["ridge"]())
    predictor.save(tmp_path / "predictor")
    adapter = dataset.samples[0].read()
    lorascope.write(adapter, tmp_path / "adapter")

    inspected = run(environment, "inspect", str(tmp_path / "adapter"), "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["norm"] == pytest.approx(adapter.norm(), rel=1e-12)

    predicted = run(environment, "predict", str(tmp_path / "predictor"), str(tmp_path / "adapter"), "--json")
    assert predicted.returncode == 0, predicted.stderr
    [expected] = predictor.predict([adapter])
    assert np.isclose(json.loads(predicted.stdout)["prediction"], expected.value, rtol=1e-9, atol=1e-9)


def test_it_merges_resizes_compares_and_finds(environment, tmp_path):
    places = [tmp_path / "zoo" / name for name in ("one", "two")]
    for sample, place in zip(planted_dataset(2).samples, places, strict=True):
        lorascope.write(sample.read(), place)
    merged, small = tmp_path / "merged", tmp_path / "small"
    for words in (
        ("merge", *places, "-o", merged),
        ("merge", *places, "-o", tmp_path / "ties", "--method", "ties"),
        ("resize", merged, "-o", small, "--rank", "1"),
        ("compare", *places, merged),
        ("find", places[0], "--in", tmp_path / "zoo"),
        ("find", "--duplicates", tmp_path / "zoo"),
        ("compress", *places, "-o", tmp_path / "pack.safetensors"),
    ):
        result = run(environment, *map(str, words), "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["schema_version"] >= 1
    assert lorascope.compare.compare([lorascope.read(merged), lorascope.read(small)]).relative_distance < 1


def test_what_needs_an_extra_names_it(environment, tmp_path):
    (tmp_path / "labels.csv").write_text("path,y\na,1\n")
    for words, extra in ((("zoo", "info", tmp_path), ""), (("forge", "digits-vit", "--plan"), "lorascope[forge]")):
        result = run(environment, *map(str, words))
        assert result.returncode == 2
        assert "Traceback" not in result.stderr and extra in result.stderr
