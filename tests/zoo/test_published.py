"""Published zoos: labels, hyperparameters and groups of each layout, and the way from one to a prediction."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lorascope as library
from lorascope.errors import ZooError
from lorascope.zoo import Zoo, import_published
from lorascope.zoo.layouts.padbench import subset_values
from published_zoos import (
    SAMPLES,
    factors,
    imported,
    lora_wise,
    lots_of_loras,
    made,
    peft,
    published_split,
    w2w_rows,
)


def test_celeba_of_lol(tmp_path):
    made(("lol", "celeba"), tmp_path / "in")
    torch.save(27.5, tmp_path / "in/models_4/model_0_0_0_0_1/score")
    torch.save(np.float64(1), tmp_path / "in/models_4/model_0_0_0_0_2/score")  # a pickle of more than plain data
    report, rows = imported(("lol", "celeba"), tmp_path)
    first, second = rows["models_4/model_0_0_0_0_1"], rows["models_4/model_1_1_1_1_1"]
    assert (first["Male"], first["Young"], first["clip_score"]) == (True, False, 27.5)
    assert (first["learning_rate"], first["steps"], first["accumulation"], first["prompt"]) == (
        1e-4,
        100,
        1,
        "celebrity",
    )
    assert (second["learning_rate_index"], second["learning_rate"]) == (1, None)  # code and paper differ
    assert first["group"] == second["group"] == "celebrity 1"
    assert rows["models_4/model_0_0_0_0_2"]["Male"] is False and rows["models_4/model_0_0_0_0_2"]["clip_score"] is None
    assert "1 files of CLIP scores are damaged" in " ".join(report.notes)
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.column("Male").role == "label" and zoo.column("steps").role == "hyperparameter"
    assert first["path"] == "adapters/models_4/model_0_0_0_0_1"
    assert library.read(zoo.adapter_path(first))["mid.to_q"].scale == 4.0


def test_the_published_split_of_lol_is_a_column_and_its_leak_is_counted(tmp_path):
    made(("lol", "celeba"), tmp_path / "in")
    with pytest.raises(ZooError, match=r"published split is missing"):
        imported(("lol", "celeba"), tmp_path, published_split=True)
    published_split(
        tmp_path / "in",
        train=["model_0_0_0_0_1", "model_0_0_0_0_2", "../outside"],
        valid=["model_0_0_0_0_3"],
        test=["model_1_1_1_1_1"],
    )
    report, rows = imported(("lol", "celeba"), tmp_path, published_split=True)
    assert rows["models_4/model_1_1_1_1_1"]["published_split"] == "test"
    assert rows["models_4/model_1_1_1_1_2"]["published_split"] is None
    assert Zoo.open(tmp_path / "zoo").column("published_split").role == "label"
    assert "1 of 3 groups on two sides" in report.notes[0]
    assert "1 adapters of the published split are not in the folder" in report.notes[1]
    assert len({row["split"] for row in rows.values() if row["group"] == "celebrity 1"}) == 1


@pytest.mark.parametrize("damage", ["twice", "no list", "code", "cut"])
def test_published_splits_that_are_damaged(tmp_path, damage):
    made(("lol", "celeba"), tmp_path / "in")
    published_split(tmp_path / "in", train=["a"], test=["a"] if damage == "twice" else ["b"])
    place = tmp_path / "in/splits/test.pt"
    if damage == "no list":
        torch.save({"a": 1}, place)
    elif damage == "code":
        torch.save([Zoo], place)
    elif damage == "cut":
        place.write_bytes(place.read_bytes()[:40])
    match = {"twice": "twice", "no list": "not a list", "code": r"Zoo.*refused", "cut": "damaged"}[damage]
    with pytest.raises(ZooError, match=match):
        imported(("lol", "celeba"), tmp_path, published_split=True)
    assert not (tmp_path / "zoo").exists()


def test_imagenette_and_arc_of_lol(tmp_path):
    made(("lol", "imagenette"), tmp_path / "in")
    _, rows = imported(("lol", "imagenette"), tmp_path)
    row = rows["models_32/model_num_1000000001_1"]
    assert (row["classes"], row["class_count"], row["copy"]) == ([0, 9], 2, 1)
    assert row["group"] == rows["models_32/model_num_1000000001_0"]["group"]
    made(("lol", "arc"), tmp_path / "arc")
    (tmp_path / "arc/qwen2_arc_data/qwen2_3/eval_loss.txt").write_text("nan")
    report = import_published(tmp_path / "arc", out=tmp_path / "arc-zoo")
    rows = Zoo.open(tmp_path / "arc-zoo").rows()
    assert len(rows[0]["sources"]) == 17 and not {"MCAS", "WASL"} & set(rows[0]["sources"])
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]  # the same sources, written in another order
    assert (rows[2]["eval_loss"], rows[2]["arc_challenge_accuracy"], rows[2]["dropout"]) == (2.5, 0.25, 0.02)
    assert rows[3]["eval_loss"] is None and len(rows[3]["sources"]) == 19 and "1 text files" in report.notes[0]
    assert not list((tmp_path / "arc-zoo").rglob("eval_loss.txt"))


def test_padbench(tmp_path):
    made(("padbench", "adapters"), tmp_path / "in")
    _, rows = imported(("padbench", "adapters"), tmp_path)
    by_group = {}
    for row in rows.values():
        by_group.setdefault(row["group"], []).append(row["backdoored"])
    assert {group: sorted(labels) for group, labels in by_group.items()} == {
        f"index {index}": [False, False, True, True] for index in range(3)
    }
    row = rows["llama2_7b_imdb_RIPPLE_rank256_qv/llama2_7b_imdb_RIPPLE_rank256_qv_label1_2"]
    assert (row["model"], row["method"], row["rank"], row["projections"], row["data"], row["attack"]) == (
        "llama2_7b",
        "lora",
        256,
        "qv",
        "imdb",
        "RIPPLE",
    )
    assert subset_values("flan_t5_xl_toxic_backdoors_hard_rank256_qv")["attack"] == "toxic_backdoors_hard"
    assert subset_values("something_else_rank8_qv") == dict.fromkeys(("model", "method", "data", "attack")) | {
        "rank": 8,
        "projections": "qv",
    }


def test_lots_of_loras_and_the_cache_of_the_hub(tmp_path):
    lots_of_loras(tmp_path / "in")
    cached = tmp_path / "in/models--Lots-of-LoRAs--Mistral-7B-Instruct-v0.2-4b-r16-task12"
    peft(cached / "snapshots/abc", 12)
    (cached / "blobs").mkdir()
    for number, file in enumerate(sorted((cached / "snapshots/abc").iterdir())):
        file.rename(cached / f"blobs/{number}")
        file.symlink_to(f"../../blobs/{number}")
    peft(tmp_path / "in/models--X--Y-r16-task13/other", 13)
    report, rows = imported(("lots-of-loras", "tasks"), tmp_path)
    by_task = {row["task"]: row for row in rows.values()}
    assert by_task[33]["group"] == by_task[1391]["group"] == "source winogrande"
    assert by_task[33]["task_name"] == "task033_winogrande_answer_generation" and by_task[33]["rank"] == 16
    assert by_task[7]["group"] == "task 7" and by_task[7]["task_name"] is None and len(report.unlabelled) == 2
    assert by_task[12]["status"] == "ok" and 13 not in by_task
    assert "no snapshot" in report.unreadable["models--X--Y-r16-task13"]


def test_lora_wise_groups_are_sets_of_images_over_ranks(tmp_path):
    lora_wise(tmp_path / "in")
    _, rows = imported(("lora-wise", "parquet"), tmp_path)
    assert {row["dataset_size"] for row in rows.values()} == {1, 2, 6}
    assert rows["low_2/pet_dog1/6"]["group"] == "low pet_dog1" and rows["low_2/pet_dog1/6"]["rank"] == 2
    lora_wise(tmp_path / "flat", names=("1", "2"), subset="medium_2_2/train")
    import_published(tmp_path / "flat", out=tmp_path / "flat-zoo")
    assert {row["group"] for row in Zoo.open(tmp_path / "flat-zoo").rows()} == {"medium 1", "medium 2"}


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/b", ".", "-", "x" * 200])
def test_hostile_names_in_a_table_of_weights_are_counted_and_go_nowhere(tmp_path, name):
    lora_wise(tmp_path / "in", names=("good", name))
    report, rows = imported(("lora-wise", "parquet"), tmp_path)
    assert len(rows) == 3 and len(report.unreadable) == 3
    assert all("not plain" in error for error in report.unreadable.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "zoo"]


def test_lora_wise_damage(tmp_path):
    lora_wise(tmp_path / "in", bad=True)
    report, rows = imported(("lora-wise", "parquet"), tmp_path)
    assert len(rows) == 5 and "a multiple of 2" in report.unreadable["low_2/pet_dog1/2"]
    file = tmp_path / "in/low/2/train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ZooError, match="not a Parquet file"):
        import_published(tmp_path / "in", out=tmp_path / "other")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"label": [1]}), file)
    with pytest.raises(ZooError, match=r"columns are missing.*name"):
        import_published(tmp_path / "in", out=tmp_path / "other")


def test_rows_of_weights2weights_are_the_numbers_of_the_tensor(tmp_path):
    weights = w2w_rows(tmp_path / "in")
    _, rows = imported(("weights2weights", "rows"), tmp_path)
    row = rows["identities/00000003"]
    assert (row["Male"], row["Young"], row["group"]) == (True, True, "file 101")
    assert rows["identities/00000002"]["group"] == "file 101"
    folder = Zoo.open(tmp_path / "zoo").adapter_path(row)
    tensors = load_file(folder / "adapter_model.safetensors")
    order = [
        f"base_model.model.{site}.lora_{half}.weight" for site in ("down.attn1.to_q", "mid.to_v") for half in ("A", "B")
    ]
    np.testing.assert_array_equal(np.concatenate([tensors[key].ravel() for key in order]), weights[3])
    assert library.read(folder)["down.attn1.to_q"].scale == 27.0


def test_weights2weights_refuses_what_it_cannot_read_exactly(tmp_path):
    w2w_rows(tmp_path / "in")
    base = tmp_path / "in/weights_datasets"
    csv = base / "identities/identity_df.csv"
    text = csv.read_text()
    csv.write_text(text + "9,9,1,1\n")
    with pytest.raises(ZooError, match=r"order alone.*5 lines.*6"):
        imported(("weights2weights", "rows"), tmp_path)
    csv.write_text(text.replace("1,1\n", "1,maybe\n"))
    with pytest.raises(ZooError, match=r"line 2, Young.*maybe"):
        imported(("weights2weights", "rows"), tmp_path)
    csv.unlink()
    (base / "identities/identity_df.pt").write_bytes(b"a pickle")
    with pytest.raises(ZooError, match="pickle that is not read"):
        imported(("weights2weights", "rows"), tmp_path)
    csv.write_text(text)
    for bad, match in (({"x.weight": ((3,), (1, 3))}, "factors"), ({}, "factors"), ([1], "factors")):
        torch.save(bad, base / "weight_dimensions.pt")
        with pytest.raises(ZooError, match=match):
            imported(("weights2weights", "rows"), tmp_path)
    torch.save({"m.lora_A.weight": ((3,), (1, 3))}, base / "weight_dimensions.pt")
    with pytest.raises(ZooError, match=r"another length.*expected 3, found 11"):
        imported(("weights2weights", "rows"), tmp_path)
    assert not (tmp_path / "zoo").exists()


def test_sets_of_w2t(tmp_path):
    made(("w2t", "celeba"), tmp_path / "in")
    published_split(tmp_path / "in", train=["model_77_0_1_2_3_3"], test=["model_77_0_1_2_3_4"])
    _, rows = imported(("w2t", "celeba"), tmp_path, published_split=True)
    row = rows["models_rank8_full/model_77_0_1_2_3_3"]
    assert (row["Male"], row["seed"], row["steps_index"], row["steps"], row["prompt"]) == (True, 77, 1, 133, "face")
    assert (row["group"], row["published_split"]) == ("celebrity 3", "train")
    assert rows["models_rank8_full/model_77_0_1_2_3_4"]["steps"] is None  # in no plan
    made(("w2t", "cub"), tmp_path / "cub")
    import_published(tmp_path / "cub")
    groups = [row["group"] for row in Zoo.open(tmp_path / "cub").rows()]
    assert groups == ["species 001.Albatross", "species 001.Albatross", "species 002.Wren"]


def test_language_sets_of_w2t_get_the_scale_that_their_tables_state(tmp_path):
    made(("w2t", "goemotions"), tmp_path / "in")
    _, rows = imported(("w2t", "goemotions"), tmp_path)
    one = rows["goemotions/Llama-3.2-3B/lora_goemotions_Llama-3.2-3B_1"]
    assert (one["emotions"], one["rank"], one["group"]) == (["joy", "love"], 2, "text aa")
    assert one["base"] == "meta-llama/Llama-3.2-3B"
    assert library.read(Zoo.open(tmp_path / "zoo").adapter_path(one))["mid.to_q"].scale == 8.0
    made(("w2t", "runs"), tmp_path / "runs")
    import_published(tmp_path / "runs", out=tmp_path / "runs-zoo")
    zoo = Zoo.open(tmp_path / "runs-zoo")
    assert zoo.rows()[2]["test_loss"] == 1.2 and zoo.rows()[2]["test_ppl"] is None  # infinite: the run diverged
    update = library.read(zoo.adapter_path(zoo.rows()[0]))["mid.to_q"]
    B, A = factors(0)
    assert update.scale == 8.0 and zoo.rows()[0]["base"] == "meta-llama/Llama-3.2-3B"
    np.testing.assert_array_equal(update.B, B)
    np.testing.assert_array_equal(update.A, A)


def test_from_a_published_zoo_to_a_prediction(lorascope, tmp_path):
    """Backdoored adapters are larger here: ridge finds it, on groups that it was not fitted on."""
    for index in range(24):
        for label in (0, 1):
            folder = tmp_path / f"in/s_imdb_x_rank2_q/s_imdb_x_rank2_q_label{label}_{index}"
            peft(folder, 2 * index + label, config={"peft_type": "LORA", "r": 2, "lora_alpha": 2 + 60 * label})
    code, out, err = lorascope("zoo", "import", tmp_path / "in", "--out", tmp_path / "zoo", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["layout"], report["count"], report["missing"]) == ("padbench", 48, [])
    fit = ("fit", tmp_path / "zoo", "--target", "backdoored", "--out", tmp_path / "p", "--model", "ridge")
    code, _, err = lorascope(*fit, "--option", "size=4", "--seeds", "1")
    assert code == 0, err
    code, out, err = lorascope("evaluate", tmp_path / "p", tmp_path / "zoo", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["accuracy"]["mean"] > 0.9


def test_the_command_says_what_it_did_and_what_is_wrong(lorascope, tmp_path):
    source = made(("w2t", "celeba"), tmp_path / "in")
    peft(source / "models_rank8_full/model_1_0_0_0_0_9/unet", 9)
    code, out, _ = lorascope("zoo", "import", source, "--layout", "w2t", "--out", tmp_path / "zoo")
    assert code == 0
    assert "3 adapters, w2t (celeba)" in out and "1 adapter without labels, kept with null labels" in out
    for arguments, match in (
        (("--layout", "w2tt"), "did you mean 'w2t'"),
        (("--layout", "lol"), "does not have the layout lol"),
        (("--labels", "x.csv", "--layout", "w2t"), "two ways"),
        (("--group", "x"), "belong to --labels"),
        (("--layout-splits",), "published split is missing"),
    ):
        code, _, err = lorascope("zoo", "import", source, "--out", tmp_path / "other", *arguments)
        assert code == 2 and match in err, (arguments, err)
        assert "Traceback" not in err and not (tmp_path / "other").exists()


def test_layouts_are_listed(lorascope):
    code, out, _ = lorascope("zoo", "layouts")
    assert code == 0 and "lol: Learning on LoRAs" in out and "[experimental]" in out and "unknown: " in out
    code, out, _ = lorascope("zoo", "layouts", "--json")
    assert {one["name"] for one in json.loads(out)["layouts"]} == {name for name, _ in SAMPLES}
