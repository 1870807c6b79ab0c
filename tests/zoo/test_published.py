"""Published zoos: labels, hyperparameters and groups of each layout, and what is said of files that are damaged."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lorascope as library
from lorascope.errors import ZooError
from lorascope.zoo import Zoo, import_published, label_files
from lorascope.zoo.layouts.padbench import subset_values
from published_zoos import (
    SAMPLES,
    celeba,
    factors,
    lora_wise,
    lots_of_loras,
    made,
    peft,
    published_split,
    table,
    w2w_rows,
)


def imported(sample, tmp_path, **options):
    """The report and the rows by id of a sample that was imported."""
    report = import_published(tmp_path / "in", layout=sample[0], out=tmp_path / "zoo", **options)
    return report, {row["id"]: row for row in Zoo.open(tmp_path / "zoo").rows(only_usable=False)}


# ------------------------------------------------------------------------------------------------- what is read


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


# ---------------------------------------------------------------------------------------- what is not as it should


LABEL_FILES = {
    ("lol", "celeba"): "list_attr_celeba.csv",
    ("lol", "arc"): "hparams.csv",
    ("weights2weights", "folders"): "identity_df.csv",
    ("weights2weights", "rows"): "weights_datasets/identities/identity_df.csv",
    ("w2t", "celeba"): "celeba_labels.csv",
    ("w2t", "goemotions"): "metadata_gpu_0.csv",
    ("w2t", "runs"): "results_arc_easy.csv",
}


@pytest.mark.parametrize("sample", LABEL_FILES, ids="-".join)
@pytest.mark.parametrize("bad", ["missing", "huge", "empty", "columns", "cells", "bytes", "twice", "folder", "pipe"])
def test_bad_files_of_labels_are_one_error_and_leave_nothing(sample, bad, tmp_path, monkeypatch):
    import os

    source = made(sample, tmp_path / "in")
    file = source / LABEL_FILES[sample]
    text = file.read_text()
    match = {
        "missing": "missing",
        "huge": "too large",
        "empty": "empty",
        "columns": "columns are missing|order alone|holds none of the photographs",
        "cells": "number of cells",
        "bytes": "UTF-8",
        "twice": "distinct",
        "folder": "missing",
        "pipe": "missing",
    }[bad]
    if bad in ("missing", "folder", "pipe"):
        file.unlink()
        if bad == "folder":
            file.mkdir()
        if bad == "pipe":
            os.mkfifo(file)
    elif bad == "huge":
        monkeypatch.setattr(label_files, "MAXIMUM_BYTES", len(text) - 1)
    elif bad == "twice":
        first, _, rest = text.partition("\n")
        file.write_text(f"{first},{first.split(',')[-1]}\n{rest}")
    elif bad == "bytes":
        file.write_bytes(text.encode() + b"\xff\xfe")
    else:
        file.write_text({"empty": "", "columns": "x,y\nz,1\n", "cells": text + "1\n"}[bad])
    with pytest.raises(ZooError, match=match):
        import_published(source, layout=sample[0], out=tmp_path / "zoo")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("sample", "lines", "missing", "unlabelled"),
    [
        (("lol", "celeba"), None, ["celeb_9"], ["models_4/model_0_0_0_0_8"]),
        (("lol", "arc"), "0.1,0.1,3,32,0,CSZ", ["hparams.csv row 4"], ["qwen2_arc_data/qwen2_8"]),
        (
            ("weights2weights", "folders"),
            "d,77,1\ne,../x,1\nf,/etc/passwd,1",
            ["77", "../x", "/etc/passwd"],
            ["models/8"],
        ),
        (("w2t", "celeba"), "celeb_9,2,2,1,1", ["celeb_9"], ["models_rank8_full/model_77_0_1_2_3_8"]),
        (
            ("w2t", "goemotions"),
            '9,goemotions,../../x,/etc/passwd,cc,"[0, 1, 1]",1.5,2,16,x',
            ["run goemotions/x/9"],
            ["goemotions/Llama-3.2-3B/lora_goemotions_Llama-3.2-3B_8"],
        ),
        (("w2t", "runs"), "9,../x,0.1,3,2,16,5,1,1,1,", ["run 9"], ["runs/trial_000008"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_labels_without_adapter_and_adapters_without_label(sample, lines, missing, unlabelled, tmp_path):
    source = made(sample, tmp_path / "in")
    if lines is None:
        (source / "celeb_organized/celeb_9").mkdir()
        (source / "celeb_organized/celeb_9/50.jpg").write_bytes(b"")
        peft(source / f"{unlabelled[0]}/unet", 8)
    else:
        with (source / LABEL_FILES[sample]).open("a") as stream:
            stream.write(lines + "\n")
        place = source / unlabelled[0]
        if sample == ("lol", "arc"):
            peft(place, 8, name="adapter_model.bin")
        elif sample[1] in ("goemotions", "runs"):
            loose = sample[1] == "goemotions"
            peft(place.parent if loose else place, 8, config=None, name=f"{place.name}.safetensors")
        else:
            peft(place / "unet", 8)
    report, rows = imported(sample, tmp_path)
    assert list(report.missing) == missing and list(report.unlabelled) == unlabelled
    row = rows[unlabelled[0]]
    assert row["status"] == "ok"
    labels = Zoo.open(tmp_path / "zoo").labels()
    assert all(row[name] is None for name in labels if name not in ("dataset",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "zoo"]


@pytest.mark.parametrize(
    ("sample", "old", "new", "match"),
    [
        (("lol", "celeba"), "000010.jpg,1", "000010.jpg,2", r"line 11, Male.*found 2"),
        (("lol", "arc"), "CSZ", "CSZ|Mercury", "not Mercury"),
        (("lol", "arc"), "0.001,", "fast,", r"learning_rate.*a number.*fast"),
        (("weights2weights", "folders"), "1.0", "9", "1 and 0"),
        (("w2t", "celeba"), "celeb_4", "celeb_3", "each once"),
        (("w2t", "celeba"), "celeb_4", "../4", "each once"),
        (("w2t", "goemotions"), "[0, 1, 1]", "[0, 1]", "3 zeros and ones"),
        (("w2t", "goemotions"), "[0, 1, 1]", "[" * 5000, "3 zeros and ones"),
        (("w2t", "runs"), "2,arc", "1,arc", "each once"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_cells_that_are_wrong_name_their_line(sample, old, new, match, tmp_path):
    source = made(sample, tmp_path / "in")
    file = source / LABEL_FILES[sample]
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ZooError, match=match):
        imported(sample, tmp_path)


def test_photographs_tell_whose_they_are_and_scores_alone_will_do(tmp_path):
    celeba(tmp_path / "in")
    for photograph in (tmp_path / "in").rglob("*.jpg"):
        photograph.unlink()
    with pytest.raises(ZooError, match="photographs are missing"):
        imported(("lol", "celeba"), tmp_path)
    (tmp_path / "in/list_attr_celeba.csv").unlink()
    torch.save(torch.tensor(27.5), tmp_path / "in/models_4/model_0_0_0_0_1/score")
    report, rows = imported(("lol", "celeba"), tmp_path)
    assert rows["models_4/model_0_0_0_0_1"]["clip_score"] == 27.5
    assert len(report.unlabelled) == 5 and "no attributes" in report.notes[0]


def test_a_table_without_names_of_photographs_is_read_by_its_order(tmp_path):
    celeba(tmp_path / "in")
    rows = ["1,1" if (number // 10) == 2 else "-1,-1" for number in range(1, 60)]
    table(tmp_path / "in/list_attr_celeba.csv", "Male,Young", *rows)
    _, rows = imported(("lol", "celeba"), tmp_path)
    assert {row["group"]: row["Male"] for row in rows.values()} == {
        "celebrity 1": False,
        "celebrity 2": True,
        "celebrity 3": False,
    }
    table(tmp_path / "in/list_attr_celeba.csv", "Male,Young", *rows_until(21))
    report = import_published(tmp_path / "in", out=tmp_path / "short")
    assert len(report.unlabelled) == 2 and "2 photographs are not in the table" in report.notes[0]


def rows_until(count):
    return ["1,1"] * count


def test_two_tables_of_one_name_are_not_guessed_between(tmp_path):
    source = made(("w2t", "celeba"), tmp_path / "in")
    table(source / "old/celeba_labels.csv", "celeb_folder,Male", "celeb_3,0")
    with pytest.raises(ZooError, match="two files of one name"):
        imported(("w2t", "celeba"), tmp_path)


def test_links_that_lead_out_are_refused_and_linked_folders_not_entered(tmp_path):
    source = made(("padbench", "adapters"), tmp_path / "in")
    outside = tmp_path / "outside_label1_9"
    peft(outside, 9)
    (source / "x_label1_9").symlink_to(outside)
    report, rows = imported(("padbench", "adapters"), tmp_path)
    assert len(rows) == report.count == 12
    inner = next(source.rglob("adapter_model.safetensors"))
    inner.unlink()
    inner.symlink_to(outside / "adapter_model.safetensors")
    with pytest.raises(ZooError, match="leads out"):
        import_published(source, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("sample", LABEL_FILES, ids="-".join)
def test_labels_are_not_read_through_a_link_that_leads_out(sample, tmp_path):
    source = made(sample, tmp_path / "in")
    file = source / LABEL_FILES[sample]
    inside = source / "inside.csv"
    file.rename(inside)
    file.symlink_to(inside)
    assert import_published(source, layout=sample[0], out=tmp_path / "zoo").count
    inside.rename(tmp_path / "outside.csv")
    file.unlink()
    file.symlink_to(tmp_path / "outside.csv")
    with pytest.raises(ZooError, match="leads out"):
        import_published(source, layout=sample[0], out=tmp_path / "other")


def test_a_damaged_configuration_is_the_damage_of_its_adapter(tmp_path):
    source = made(("w2t", "runs"), tmp_path / "in")
    (source / "runs/trial_000001/trial_000001_config.json").write_text("{")
    report, rows = imported(("w2t", "runs"), tmp_path)
    assert list(rows) == ["runs/trial_000000", "runs/trial_000002"]
    assert "not JSON" in report.unreadable["runs/trial_000001"]


def test_pickles_of_code_are_unreadable_adapters(tmp_path):
    source = made(("lol", "arc"), tmp_path / "in")
    torch.save(Zoo, source / "qwen2_arc_data/qwen2_0/adapter_model.bin")
    report, rows = imported(("lol", "arc"), tmp_path)
    assert report.count == 4 and "refused" in report.unreadable["qwen2_arc_data/qwen2_0"]
    assert [row["status"] for row in rows.values()] == ["unreadable", "ok", "ok", "ok"]


@pytest.mark.parametrize("sample", [key for key in SAMPLES if key[1] not in ("celeba", "cub")], ids="-".join)
def test_layouts_without_a_published_split_say_so(sample, tmp_path):
    made(sample, tmp_path / "in")
    with pytest.raises(ZooError, match="no published split"):
        imported(sample, tmp_path, published_split=True)


# ------------------------------------------------------------------------------------------------ the command line


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
    assert "3 adapters, w2t (celeba)" in out and "1 adapters without labels, kept with null labels" in out
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
