"""``bench`` and ``models`` from the command line, and damaged or missing data in ``fit`` and ``evaluate``."""

import json
import os
import sys

import pytest

import lorascope
from lorascope.cli import main
from lorascope.features import FEATURES
from lorascope.predict import MODELS
from lorascope.predict.kernel import KERNELS
from lorascope.zoo import Splitting, Zoo, import_zoo
from planted import planted_dataset

RIDGE = ("--model", "ridge", "--option", "size=4", "--seeds", "1")
QUICK = ("--models", "ridge,mlp", "--option", "ridge.size=4", "--option", "mlp.epochs=2", "--seeds", "2")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def made(folder, count, labels=None):
    """A zoo of planted adapters in files; ``labels`` name → a cell for each, beside ``size``."""
    dataset = planted_dataset(count)
    labels = {"size": dataset.labels["size"], **(labels or {})}
    lines = [",".join(["path", "rate", *labels])]
    for i, sample in enumerate(dataset.samples):
        lorascope.write(sample.read(), folder / "files" / f"a{i}")
        cells = [str(values[i]) for values in labels.values()]
        lines.append(",".join([f"a{i}", str(sample.hyperparameters["rate"]), *cells]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    import_zoo(folder / "files", folder / "labels.csv", out=folder / "zoo", hyperparameters=["rate"])
    return folder / "zoo"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return made(tmp_path_factory.mktemp("bench"), 60)


def test_models_lists_the_family(run):
    code, out, _ = run("models", "--json")
    value = json.loads(out)
    assert code == 0
    assert [one["name"] for one in value["models"]] == MODELS.names()
    assert sum(one["is_default"] for one in value["models"]) == 1
    glnet = next(one for one in value["models"] if one["name"] == "glnet")
    assert glnet["options"]["hidden"] == 32
    assert glnet["invariance"] == "GL(r)"
    _, out, _ = run("models")
    assert all(name in out for name in MODELS.names())
    _, out, _ = run("models", "glnet")
    assert "--option hidden=32" in out
    assert "arXiv 2410.04207" in out
    for name, family in (("kernels", KERNELS), ("ridge", FEATURES)):
        _, out, _ = run("models", name)
        assert all(member.formula in out for member in family)
    _, out, _ = run("models", "kernels")
    assert all(f"O({member.cost})" in out for member in KERNELS)
    code, _, err = run("models", "glnett")
    assert code == 2
    assert "did you mean 'glnet'" in err


def test_a_bench_in_a_folder(run, shared, tmp_path):
    out_folder = tmp_path / "out"
    attacks = ("--attacks", "padding,unseen-range", "--also", f"again={shared}")
    command = ("bench", shared, "--targets", "size", *QUICK, *attacks, "--out", out_folder)
    code, out, err = run(*command)
    assert code == 0, err
    for label in ("ridge", "mlp", "hyperparameters (baseline)", "norms (baseline)", "shuffled (baseline)"):
        assert label in out
    assert "refused [1]" in out  # the mlp knows no larger rank
    names = {path.name for path in out_folder.iterdir()}
    assert names == {"results.json", "splits.json", "tables.md", "zoo.png", "cells"}
    assert (out_folder / "zoo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out_folder / "results.json").read_text())
    assert results["schema_version"] == 2
    splits = Splitting.load(out_folder / "splits.json")
    assert splits.digest == results["split_digests"]["zoo"]
    assert dict(splits.splits) == {row["id"]: row["split"] for row in Zoo.open(shared).rows()}
    markdown = (out_folder / "tables.md").read_text()
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables[:7]}) == 1  # header, rule and five rows
    again = next(row for row in results["tables"][0]["rows"] if row["label"] == "ridge")["columns"]["again"]
    assert again["n"] == results["tables"][0]["tested"]  # all others are of groups that were learnt from
    assert again["facts"]["seen"] == results["tables"][0]["taught"]

    code, out, _ = run(*command, "--json")  # all cells are there: the very same numbers, times included
    assert code == 0
    assert json.loads(out)["tables"] == results["tables"]
    code, out, _ = run(
        "bench",
        shared,
        "--targets",
        "size",
        *QUICK[2:4],
        "--models",
        "ridge",
        "--seeds",
        "2",
        "--splits",
        out_folder / "splits.json",
        "--attacks",
        "none",
        "--json",
    )
    assert json.loads(out)["tables"][0]["rows"][0]["metrics"] == results["tables"][0]["rows"][0]["metrics"]


def test_cells_that_are_no_files_are_measured_again_and_not_waited_for(run, shared, tmp_path):
    command = ("bench", shared, "--targets", "size", "--models", "ridge", "--option", "ridge.size=4", "--seeds", "1")
    command = (*command, "--attacks", "none", "--out", tmp_path / "out")
    code, before, err = run(*command, "--json")
    assert code == 0, err
    for cell, damage in zip(sorted((tmp_path / "out" / "cells").iterdir()), ("pipe", "link", "list"), strict=False):
        cell.unlink()
        if damage == "pipe":
            os.mkfifo(cell)
        elif damage == "link":
            cell.symlink_to("/proc/self/environ")
        else:
            cell.write_text("[]")
    code, after, err = run(*command, "--json")
    assert code == 0, err
    assert [row["metrics"] for row in json.loads(after)["tables"][0]["rows"]] == [
        row["metrics"] for row in json.loads(before)["tables"][0]["rows"]
    ]


def test_a_place_that_holds_something_else_is_left_alone(run, shared, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    code, _, err = run("bench", shared, *QUICK, "--out", tmp_path)
    assert code == 2
    assert "something else" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_mistakes_are_one_clear_error(run, shared, tmp_path):
    for arguments, expected in (
        (("--targets", "sise"), "did you mean 'size'"),
        (("--targets", "rate"), "known before training"),
        (("--models", "rigde"), "did you mean 'ridge'"),
        (("--attacks", "gaugee"), "did you mean 'gauge'"),
        (("--option", "size=4"), "MODEL.NAME=VALUE"),
        (("--option", "ridge.sice=4"), "did you mean 'size'"),
        (("--also", "zoo"), "NAME=ZOO"),
        (("--range-of", "rank"), "expected one of rate"),
        (("--targets", ","), "names nothing"),
        (("--models", ""), "names nothing"),
    ):
        code, _, err = run("bench", shared, *(() if arguments[0] == "--models" else ("--models", "ridge")), *arguments)
        assert code == 2, arguments
        assert expected in err, (arguments, err)
        assert "Traceback" not in err


def test_labels_that_teach_nothing_are_named(run, tmp_path):
    zoo = made(tmp_path, 40, {"same": ["word"] * 40, "mostly": ["" if i % 2 else i for i in range(40)]})
    code, out, err = run("bench", zoo, *QUICK, "--attacks", "none")
    assert code == 0, err
    assert "same was not asked" in out
    assert "20 adapters without a value of mostly were left out" in out
    code, _, err = run("bench", zoo, *QUICK, "--targets", "same")
    assert code == 2
    assert "does not vary" in err
    code, out, _ = run("fit", zoo, "--target", "mostly", "--out", tmp_path / "p", "--model", "hyperparameters")
    assert code == 0
    assert "adapters without a value of mostly" in out
    code, out, _ = run("evaluate", tmp_path / "p", zoo, "--split", "all", "--json")
    value = json.loads(out)
    assert (value["n"], value["left_out"]) == (20, {"unlabelled": 20, "damaged": 0})


def test_three_adapters_are_too_few_for_anything(run, tmp_path):
    zoo = made(tmp_path, 3)
    for command in (("bench", zoo, *QUICK), ("fit", zoo, "--target", "size", "--out", tmp_path / "p")):
        code, _, err = run(*command)
        assert code == 2
        assert "at least 12" in err


def test_a_damaged_adapter_is_treated_alike_by_all(run, tmp_path):
    zoo = made(tmp_path, 40)
    code, _, err = run("fit", zoo, "--target", "size", "--out", tmp_path / "p", *RIDGE)
    assert code == 0, err
    opened, broken = Zoo.open(zoo), {}
    for split in ("train", "test"):
        row = opened.split(split)[0]
        path = next(opened.adapter_path(row).rglob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:100])
        broken[split] = row["path"]
    commands = {
        "train": ("fit", zoo, "--target", "size", "--out", tmp_path / "p", *RIDGE),
        "test": ("evaluate", tmp_path / "p", zoo),
        "both": ("bench", zoo, *QUICK, "--targets", "size", "--attacks", "none"),
    }
    for split, command in commands.items():
        code, _, err = run(*command)
        assert code == 2, command
        assert "damaged" in err
        assert broken["train" if split == "both" else split] in err
        code, out, err = run(*command, "--skip-damaged")
        assert code == 0, err
        assert broken["train" if split == "both" else split] in out
        code, out, _ = run(*command, "--skip-damaged", "--json")
        value = json.loads(out)
        if split == "both":
            assert len(value["zoos"][0]["damaged"]) == 2
            assert sum(value["zoos"][0]["splits"].values()) == 38
        else:
            assert value["damaged"] == [broken[split]]
            assert value["left_out"]["damaged"] == 1


def test_a_model_that_breaks_gives_exit_code_2_and_the_others_their_rows(run, shared, monkeypatch):
    def broken(*arguments, seed):
        raise RuntimeError("no such device")

    monkeypatch.setattr(MODELS["mlp"], "fit", broken)
    code, out, _ = run("bench", shared, "--targets", "size", *QUICK, "--attacks", "none")
    assert code == 2
    assert "failed [1]" in out
    assert "[1] RuntimeError: no such device" in out
    assert "shuffled" in out
