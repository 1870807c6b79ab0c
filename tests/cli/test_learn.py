"""``fit``, ``evaluate`` and ``predict`` from the command line, on a zoo imported from files."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest

import lorascope
from lorascope import cli
from lorascope.cli import interruption, main
from lorascope.errors import LorascopeError
from planted import planted_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of adapters and a table of labels."""
    root = tmp_path_factory.mktemp("own")
    dataset = planted_dataset(48)
    lines = ["path,size,classes,rate"]
    for i, sample in enumerate(dataset.samples):
        lorascope.write(sample.read(), root / "adapters" / f"a{i}")
        classes = ";".join(map(str, dataset.labels["classes"][i]))
        lines.append(f"a{i},{dataset.labels['size'][i]},{classes},{sample.hyperparameters['rate']}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


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


@pytest.fixture
def zoo(run, folder, tmp_path):
    out = tmp_path / "zoo"
    code, _, err = run(
        "zoo",
        "import",
        folder / "adapters",
        "--labels",
        folder / "labels.csv",
        "--out",
        out,
        "--hyperparameter",
        "rate",
    )
    assert code == 0, err
    return out


@pytest.fixture
def predictor(run, zoo, tmp_path):
    path = tmp_path / "p"
    code, _, err = run("fit", zoo, "--target", "size", "--out", path, "--option", "size=8", "--seeds", "2")
    assert code == 0, err
    return path


def test_the_whole_way(run, zoo, predictor):
    code, out, _ = run("evaluate", predictor, zoo, "--json")
    assert code == 0
    result = json.loads(out)
    assert {"target", "task", "model", "metrics", "n"} <= set(result)
    assert (result["target"], result["task"], result["model"], result["seen"]) == ("size", "regression", "kernels", 0)
    assert set(result["metrics"]["r2"]) == {"mean", "sd"}
    assert result["metrics"]["r2"]["mean"] > 0.7

    code, out, _ = run("evaluate", predictor, zoo, "--gauge", "100", "--json")
    assert json.loads(out)["metrics"]["mae"]["mean"] == pytest.approx(result["metrics"]["mae"]["mean"], rel=1e-3)
    assert (result["gauge"], json.loads(out)["gauge"], result["split"]) == (None, 100.0, "test")
    assert "gauge of condition number 100" in " ".join(run("evaluate", predictor, zoo, "--gauge", "100")[1].split())

    code, out, _ = run("evaluate", predictor, zoo, "--split", "train")
    assert code == 0
    assert "fitted on" in out and "gauge" not in out


def test_a_metric_that_is_not_defined_is_a_dash_with_the_reason(run, folder, predictor, tmp_path):
    """Of the test part alone, where all have one value; and from how many adapters one would abstain is counted."""
    lines = ["path,size", *(f"a{i},1.0" for i in range(24))]
    (tmp_path / "same.csv").write_text("\n".join(lines) + "\n")
    same = tmp_path / "same"
    assert run("zoo", "import", folder / "adapters", "--labels", tmp_path / "same.csv", "--out", same)[0] == 0
    code, out, _ = run("evaluate", predictor, same, "--split", "all")
    assert code == 0 and "nan" not in out
    assert "kendall_tau is not defined: all adapters have the same value" in out
    value = json.loads(run("evaluate", predictor, same, "--split", "all", "--json")[1])
    assert value["schema_version"] == 2 and value["n"] == 24 and value["abstained"] == 0
    assert value["metrics"]["r2"]["mean"] is None
    assert value["undefined"]["r2"] == "all adapters have the same value"


def test_adapters_that_would_be_abstained_from_are_counted(run, folder, predictor, strange, tmp_path):
    lines = ["path,size", *(f"a{i},{i}" for i in range(5)), "strange,1.0"]
    every = tmp_path / "every"
    shutil.copytree(folder / "adapters", every)
    shutil.copytree(strange, every / "strange")
    (tmp_path / "few.csv").write_text("\n".join(lines) + "\n")
    assert run("zoo", "import", every, "--labels", tmp_path / "few.csv", "--out", tmp_path / "few")[0] == 0
    code, out, _ = run("evaluate", predictor, tmp_path / "few", "--split", "all")
    assert code == 0 and "1 of 6 adapters is unlike those of training" in out
    assert json.loads(run("evaluate", predictor, tmp_path / "few", "--split", "all", "--json")[1])["abstained"] == 1


def test_the_gate_and_the_norm_of_glnet_are_options(run, zoo, tmp_path):
    options = {"layers": 2, "gate": "smooth", "norm": True, "epochs": 1, "hidden": 4}
    given = [part for name, value in options.items() for part in ("--option", f"{name}={value}".lower())]
    code, _, err = run(
        "fit", zoo, "--target", "size", "--out", tmp_path / "g", "--model", "glnet", "--seeds", 1, *given
    )
    assert code == 0, err
    kept = json.loads((tmp_path / "g" / "predictor.json").read_text())["model"]
    assert kept["name"] == "glnet" and options.items() <= kept["options"].items()
    code, out, _ = run("evaluate", tmp_path / "g", zoo, "--json")
    assert code == 0 and json.loads(out)["model"] == "glnet"


def test_predict_prints_text_json_and_csv(run, predictor, folder):
    adapters = [folder / "adapters" / "a0", folder / "adapters" / "a1"]
    code, out, _ = run("predict", predictor, *adapters)
    assert code == 0
    assert "90 % interval" in out

    _, out, _ = run("predict", predictor, *adapters, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["path"] for record in records] == [str(path) for path in adapters]
    assert records[0]["interval"][0] < records[0]["prediction"] < records[0]["interval"][1]

    _, out, _ = run("predict", predictor, *adapters, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert float(rows[1]["size"]) == pytest.approx(records[1]["prediction"])
    assert rows[1]["abstained"] == "false"

    _, out, _ = run("predict", predictor, *adapters, "--level", "0.5")
    assert "50 % interval" in out
    _, out, _ = run("predict", predictor, *adapters, "--level", "0.5", "--json")
    narrow = json.loads(out.splitlines()[0])
    assert narrow["level"] == 0.5
    assert records[0]["interval"][0] < narrow["interval"][0] < narrow["interval"][1] < records[0]["interval"][1]


def test_probabilities_of_many_labels(run, zoo, folder, tmp_path):
    code, _, err = run("fit", zoo, "--target", "classes", "--out", tmp_path / "c", "--option", "size=8", "--seeds", "1")
    assert code == 0, err
    _, out, _ = run("predict", tmp_path / "c", folder / "adapters" / "a0", "--json")
    record = json.loads(out)
    assert set(record["probabilities"]) == set("012345")
    assert record["prediction"] == [int(k) for k, p in record["probabilities"].items() if p >= 0.5]
    _, out, _ = run("predict", tmp_path / "c", folder / "adapters", "--csv")
    assert len(out.splitlines()) == 49


def test_a_bad_file_among_good_ones_is_one_error_and_the_others_go_on(run, predictor, folder, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\0" * 64)
    good = folder / "adapters" / "a0"
    code, out, _ = run("predict", predictor, good, bad, good, "--json")
    assert code == 2
    first, error, last = (json.loads(line) for line in out.splitlines())
    assert first["prediction"] == last["prediction"]
    assert error["file"] == str(bad)
    code, out, err = run("predict", predictor, good, bad)
    assert code == 2
    assert str(bad) in err
    assert "Traceback" not in err


def test_mistakes_are_one_clear_error_with_exit_code_2(run, zoo, predictor, folder, tmp_path):
    nowhere = tmp_path / "nowhere"
    (tmp_path / "link").symlink_to(predictor)
    for arguments, expected in (
        (("fit", zoo, "--target", "sise", "--out", nowhere), "did you mean 'size'"),
        (("fit", zoo, "--target", "size", "--out", nowhere, "--model", "rigde"), "did you mean 'ridge'"),
        (("fit", zoo, "--target", "size", "--out", nowhere, "--option", "sice=3"), "did you mean 'size'"),
        (("fit", zoo, "--target", "size", "--out", nowhere, "--option", "size=big"), "expected int"),
        (("fit", zoo, "--target", "size", "--out", nowhere, "--option", "kernels=nrom"), "there is no kernel 'nrom'"),
        (("fit", zoo, "--target", "size", "--out", folder / "labels.csv"), "something else"),
        (("fit", zoo, "--target", "size", "--out", folder / "labels.csv" / "p"), "cannot be written"),
        (("fit", zoo, "--target", "size", "--out", tmp_path / "link"), "is a link"),
        (("fit", nowhere, "--target", "size", "--out", nowhere), "is not a zoo"),
        (("evaluate", nowhere, zoo), "not a predictor"),
        (("evaluate", predictor, zoo, "--split", "tset"), "unknown split"),
        (("evaluate", predictor, zoo, "--gauge", "1e300"), "1000000"),
        (("predict", predictor, nowhere), "no such file"),
        (("predict", predictor, tmp_path / "empty"), "no"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert expected in err, (arguments, err)
        assert "Traceback" not in err
        assert not nowhere.exists()
    code, out, _ = run("evaluate", nowhere, zoo, "--json")
    assert code == 2
    assert json.loads(out)["error"] == "PredictorError"


@pytest.fixture
def strange(folder, tmp_path):
    """An adapter of the right sites, ten thousand times too large."""
    from lorascope.adapter import Adapter, LowRank

    adapter = lorascope.read(folder / "adapters" / "a0")
    sites = {}
    for site, update in adapter.items():
        B, A, scale = update.factors()
        sites[site] = LowRank(B, A, scale * 1e4)
    lorascope.write(Adapter(sites), tmp_path / "strange")
    return tmp_path / "strange"


def test_it_abstains_on_what_is_unlike_training_and_exits_with_1(run, predictor, folder, strange):
    usual = folder / "adapters" / "a0"
    code, out, _ = run("predict", predictor, strange, usual)
    assert code == 1
    assert "no value" in out
    assert "times the largest in training" in out
    code, out, _ = run("predict", predictor, usual, strange, "--json")
    assert code == 1
    said, withheld = (json.loads(line) for line in out.splitlines())
    assert (said["abstained"], withheld["abstained"]) == (False, True)
    assert (withheld["prediction"], withheld["interval"], withheld["sd"]) == (None, None, None)
    assert said["prediction"] is not None
    assert withheld["p_value"] < 0.01
    assert withheld["schema_version"] == said["schema_version"] == 2
    code, out, _ = run("predict", predictor, strange, "--csv")
    [row] = csv.DictReader(io.StringIO(out))
    assert (code, row["size"], row["abstained"]) == (1, "", "true")


def test_a_forced_value_is_marked(run, predictor, strange):
    code, out, _ = run("predict", predictor, strange, "--force", "--json")
    record = json.loads(out)
    assert (code, record["abstained"]) == (1, True)
    assert record["prediction"] is not None
    _, out, _ = run("predict", predictor, strange, "--force")
    assert "not to be relied on" in out
    _, out, _ = run("predict", predictor, strange, "--force", "--csv")
    [row] = csv.DictReader(io.StringIO(out))
    assert float(row["size"]) == pytest.approx(record["prediction"])
    assert row["abstained"] == "true"


def test_an_error_outweighs_an_abstention(run, predictor, strange, tmp_path):
    code, _, _ = run("predict", predictor, strange, tmp_path / "nowhere")
    assert code == 2


def test_predict_explains(run, predictor, folder, strange):
    usual = folder / "adapters" / "a0"
    code, out, _ = run("predict", predictor, usual, "--explain")
    assert code == 0
    assert "by feature" in out
    assert "layers.0.q" in out
    _, out, _ = run("predict", predictor, usual, strange, "--explain", "--json")
    said, withheld = (json.loads(line) for line in out.splitlines())
    told = said["explanation"]
    assert told["score"] - told["baseline"] == pytest.approx(sum(told["sites"].values()))
    assert told["score"] == pytest.approx(said["prediction"])
    assert withheld["explanation"] is None
    code, _, err = run("predict", predictor, usual, "--explain", "--csv")
    assert code == 2
    assert "no row" in err


def test_a_level_that_is_no_share_is_refused(run, predictor, folder):
    code, _, err = run("predict", predictor, folder / "adapters" / "a0", "--level", "90")
    assert code == 2
    assert "between 0 and 1" in err


def test_an_adapter_of_another_base_is_refused_with_the_reason(run, predictor, tmp_path):
    import numpy as np

    from lorascope.adapter import Adapter, LowRank

    lorascope.write(Adapter({"other": LowRank(np.ones((4, 1)), np.ones((1, 4)))}), tmp_path / "other")
    code, _, err = run("predict", predictor, tmp_path / "other")
    assert code == 2
    assert "made for adapters of other layers" in err
    assert "hint" in err


def test_an_update_too_large_to_compute_with_is_an_error_of_its_file(run, predictor, folder, tmp_path):
    from lorascope.adapter import Adapter, LowRank

    sites = {}
    for site, update in lorascope.read(folder / "adapters" / "a0").items():
        B, A, _ = update.factors()
        sites[site] = LowRank(B, A, 1e200)
    lorascope.write(Adapter(sites), tmp_path / "huge")
    code, out, err = run("predict", predictor, tmp_path / "huge", folder / "adapters" / "a0", "--explain", "--force")
    assert code == 2
    assert "too large" in err
    assert str(tmp_path / "huge") in err
    assert "a0" in out


def closed(command):
    """Runs a command whose reader leaves before it writes: (exit code, standard error)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
        return process.wait(60), error


@pytest.mark.parametrize("output", [[], ["--json"], ["--csv"]])
def test_a_reader_that_leaves_ends_it_without_a_word(predictor, folder, output):
    adapters = [str(folder / "adapters" / f"a{i}") for i in range(4)]
    command = [sys.executable, "-m", "lorascope", "predict", str(predictor), *adapters, *output]
    assert closed(command) == (141, "")


@pytest.mark.parametrize("verb", [["formats"], ["--help"]])
def test_so_does_every_other_verb(verb):
    command = [sys.executable, "-m", "lorascope", *verb]
    assert closed(command) == (141, "")


def test_a_server_that_hangs_up_is_an_error_and_no_reader_that_left(monkeypatch, capsys):
    def hung_up():
        try:
            raise BrokenPipeError(32, "Broken pipe")
        except OSError as error:
            raise LorascopeError("the hub cannot be reached", found=error.strerror) from error

    monkeypatch.setattr(cli, "app", hung_up)
    monkeypatch.setattr(interruption, "stop_in_order", lambda: None)
    monkeypatch.setattr(sys, "argv", ["lorascope"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "the hub cannot be reached" in capsys.readouterr().err


def test_a_closed_output_is_no_traceback(predictor, folder):
    command = [sys.executable, "-m", "lorascope", "predict", str(predictor), str(folder / "adapters" / "a0")]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
