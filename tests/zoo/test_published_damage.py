"""Published zoos whose files are missing, damaged, hostile or do not fit one another."""

import pytest
import torch

from lorascope.errors import ZooError
from lorascope.zoo import Zoo, import_published, label_files
from published_zoos import (
    SAMPLES,
    celeba,
    imported,
    made,
    peft,
    table,
)

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
