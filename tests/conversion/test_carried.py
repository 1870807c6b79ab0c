"""The files of a base that come along with its baked weights, and those that do not and are said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import bake, carried
from lorascope.errors import AdapterError

ADAPTER = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)))})
WEIGHTS = {"q.weight": np.zeros((4, 3), np.float32)}
DENSE = {"linear.weight": np.full((2, 2), 7, np.float32)}


def folder_with(root: Path, **files: bytes | dict[str, np.ndarray]) -> Path:
    """A folder of files, of safetensors where tensors are given; ``__`` in a name stands for a folder."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            safetensors.numpy.save_file(content, path)
    return root


def files_in(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_weights_of_other_parts_come_along(tmp_path: Path) -> None:
    """A text encoder of sentence-transformers: a model, a pooling and a dense layer, each in its folder."""
    files = {
        "model.safetensors": WEIGHTS, "modules.json": b"[]", "1_Pooling__config.json": b"{}", "empty.txt": b"",
        "2_Dense__model.safetensors": DENSE, "3_Dense__pytorch_model.bin": b"pickle", "training_args.bin": b"args",
        "v_head.safetensors": DENSE, "tokenizer.model": b"pieces",
    }  # fmt: skip
    base = folder_with(tmp_path / "base", **files)
    report = bake(base, [ADAPTER], tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(base) and report.notes == ()
    for name in files_in(base) - {"model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes(), name
    assert safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")["q.weight"].tolist() == [[1.0] * 3] * 4


def test_copies_of_the_baked_weights_are_left_out_and_said(tmp_path: Path) -> None:
    files = {
        "model.safetensors": WEIGHTS, "model.fp16.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle",
        "onnx__model.onnx": b"graph", "model-q4.gguf": b"GGUF", "openvino__openvino_model.bin": b"graph",
    }  # fmt: skip
    report = bake(folder_with(tmp_path / "base", **files), [ADAPTER], tmp_path / "out")
    assert files_in(tmp_path / "out") == {"model.safetensors"}
    (note,) = report.notes
    assert note.startswith("left out, being other copies") and all(
        name.replace("__", "/") in note for name in list(files)[1:]
    )


def test_links_out_of_the_base_are_not_followed(tmp_path: Path) -> None:
    base = folder_with(tmp_path / "base", **{"model.safetensors": WEIGHTS, "inside.txt": b"inside"})
    secret = folder_with(tmp_path / "elsewhere", **{"secret.txt": b"secret"})
    (base / "link.txt").symlink_to(secret / "secret.txt")
    (base / "folder").symlink_to(secret)
    (base / "round").symlink_to(base)
    (base / "alias.txt").symlink_to("inside.txt")
    os.mkfifo(base / "pipe")
    report = bake(base, [ADAPTER], tmp_path / "out")
    assert files_in(tmp_path / "out") == {"model.safetensors", "inside.txt", "alias.txt"}
    assert not (tmp_path / "out" / "alias.txt").is_symlink()
    (note,) = report.notes
    assert note == "left out, being links that lead out of the base: folder, round, link.txt"


def test_a_snapshot_of_the_hubs_cache_is_links_to_its_store(tmp_path: Path) -> None:
    store = folder_with(tmp_path / "models--a--b" / "blobs", one=WEIGHTS, two=b"{}")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", "one"), ("config.json", "two")):
        (snapshot / name).symlink_to(os.path.relpath(store / blob, snapshot))
    assert bake(snapshot, [ADAPTER], tmp_path / "out").notes == ()
    assert files_in(tmp_path / "out") == {"model.safetensors", "config.json"}


def test_a_base_of_countless_files_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "MAX_FILES", 3)
    files = {f"{number}.txt": b"" for number in range(3)}
    base = folder_with(tmp_path / "base", **files, **{"model.safetensors": WEIGHTS})
    with pytest.raises(AdapterError, match="too many files"):
        bake(base, [ADAPTER], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
