"""Pickled weights: only tensors are read, everything else is named and never executed."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lorascope.errors import AdapterError, MissingExtraError
from lorascope.formats.container import read_container
from lorascope.formats.pickle_file import global_names, read_pickle

torch = pytest.importorskip("torch")


class Executes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_of_all_kinds_become_read_only_views(tmp_path: Path, is_zip: bool) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(
        a=torch.nn.Parameter(base.clone()),
        t=base.t(),
        bf=base.to(torch.bfloat16),
        i=torch.tensor(3),
    )
    if is_zip:  # PyTorch itself cannot read these back from its old format
        state["f8"] = base.to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=is_zip)
    tensors = read_container(tmp_path / "x.bin").tensors
    assert tensors["a"].tolist() == base.tolist() and not tensors["a"].flags.writeable
    assert tensors["t"].tolist() == base.t().tolist()
    assert tensors["bf"].dtype == ml_dtypes.bfloat16 and tensors["bf"].astype(float).tolist() == base.tolist()
    if is_zip:
        assert not is_zip or tensors["f8"].dtype == ml_dtypes.float8_e4m3fn
    assert tensors["i"].shape == ()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_executes_is_refused_by_name(tmp_path: Path, is_zip: bool, protocol: int) -> None:
    made = tmp_path / "made"
    torch.save(
        {"a": Executes(made)}, tmp_path / "x.bin", _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol
    )
    with pytest.raises(AdapterError, match=r"pickle refers to (posix|nt)\.mkdir: refused"):
        read_pickle(tmp_path / "x.bin")
    assert not made.exists()


def test_a_plain_pickle_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": argparse.Namespace(b=1)}))
    with pytest.raises(AdapterError, match=r"argparse\.Namespace"):
        read_container(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 3}, "no tensor"),
        ({1: torch.ones(1)}, "not all strings"),
        (torch.ones(2), "no tensors by name"),
        ({"a": torch.ones(1).expand(1000, 1000)}, "more values than the file holds"),
        ({"a": torch.eye(2).to_sparse()}, "dense|plain tensors|damaged"),
    ],
)
def test_what_holds_no_plain_tensors_is_an_error(tmp_path: Path, value: Any, said: str) -> None:
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(AdapterError, match=said):
        read_pickle(tmp_path / "x.bin")


def test_a_list_is_named_by_its_indices(tmp_path: Path) -> None:
    torch.save([torch.zeros(2, 1), torch.ones(1, 2)], tmp_path / "x.pt")
    assert list(read_container(tmp_path / "x.pt").tensors) == ["[0]", "[1]"]


@pytest.mark.parametrize("kept", [4, 100, 0.5, 0.99])
def test_a_truncated_pickle_is_one_error(tmp_path: Path, kept: float) -> None:
    torch.save({"a": torch.ones(200)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
    with pytest.raises(AdapterError):
        read_container(tmp_path / "x.bin")


def test_an_archive_that_inflates_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(80 << 20))
    with pytest.raises(AdapterError, match="declares more data"):
        read_container(tmp_path / "x.bin")


def test_without_torch_size_and_globals_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError) as caught:
        read_container(tmp_path / "x.bin")
    size = (tmp_path / "x.bin").stat().st_size
    assert str(size) in str(caught.value) and "torch._utils._rebuild_tensor_v2" in str(caught.value)
    assert "lorascope[learn]" in (caught.value.hint or "")


def test_globals_are_found_through_the_memo(tmp_path: Path) -> None:
    names = ["posix", "system"]
    opcodes = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(n)]) + n.encode() + b"\x94" for n in names)
    (tmp_path / "x.pt").write_bytes(opcodes + b"\x8c\x05other\x94" + b"h\x00h\x01\x93.")
    assert global_names(tmp_path / "x.pt") == ["posix.system"]


def test_npz_arrays_are_read_and_objects_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ok.npz", a=np.arange(6).reshape(2, 3).T)
    assert read_container(tmp_path / "ok.npz").tensors["a"].tolist() == np.arange(6).reshape(2, 3).T.tolist()
    np.savez(tmp_path / "bad.npz", a=np.array([{}], dtype=object))
    with pytest.raises(AdapterError, match="array of objects"):
        read_container(tmp_path / "bad.npz")
    data = (tmp_path / "ok.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(AdapterError, match="damaged"):
        read_container(tmp_path / "cut.npz")
