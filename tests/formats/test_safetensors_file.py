"""The safetensors reader against the reference library, damaged headers, and the writer's whole-or-nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lorascope.errors import AdapterError, OutputError
from lorascope.formats.safetensors_file import read_safetensors, write_safetensors
from lorascope.formats.stream_file import write_units

DTYPES = ["float64", "float32", "float16", "int64", "int8", "uint16", "bool", "complex64"]
NARROW = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def test_a_file_is_written_unit_by_unit_as_the_reference_writer_lays_it_out(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float16).reshape(3, 2).T,
        "a": np.arange(3, dtype=np.float32),
        "z": np.array(2.0, np.float64),
        "none": np.empty((0, 4), np.float16),
        "flags": np.array([True, False, True]),
    }
    dense = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    safetensors.numpy.save_file(dense, tmp_path / "theirs.safetensors", {"made": "here"})
    made: list[int] = []

    def counted(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        made.append(len(names))
        return {name: tensors[name] for name in names}

    parts = [("a", "b"), ("z",), ("none", "flags")]
    write_units(tmp_path / "ours.safetensors", [partial(counted, names) for names in parts], {"made": "here"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert made == [2, 1, 2] * 2
    with pytest.raises(AdapterError, match="one name"):
        write_units(tmp_path / "twice.safetensors", [partial(counted, ("a",))] * 2)
    assert not (tmp_path / "twice.safetensors").exists()


def raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [*DTYPES, *NARROW])
def test_every_dtype_is_read_as_the_reference_wrote_it(tmp_path: Path, dtype: Any) -> None:
    values = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    tensors = {"a": values, "scalar": values[0, 1], "empty": values[:0]}
    safetensors.numpy.save_file({key: np.asarray(value) for key, value in tensors.items()}, tmp_path / "x")
    file = read_safetensors(tmp_path / "x")
    for key, value in tensors.items():
        assert file.tensors[key].dtype == dtype and file.tensors[key].shape == value.shape
        assert file.tensors[key].tobytes() == value.tobytes()
    assert not file.tensors["a"].flags.writeable


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry()}, b"1234", "truncated"),
        ({"a": entry()}, b"123456789", "belong to none"),
        ({"a": entry((3,))}, b"12345678", "disagree"),
        ({"a": entry(), "b": entry()}, b"12345678", "overlapping"),
        ({"a": entry(), "b": entry((1,), 12, 16)}, b"0" * 16, "non-contiguous"),
        ({"a": entry(begin=8, end=0)}, b"12345678", "whole numbers"),
        ({"a": entry((-2,))}, b"12345678", "whole numbers"),
        ({"a": entry((2.0,))}, b"12345678", "whole numbers"),
        ({"a": entry((True, 2))}, b"12345678", "whole numbers"),
        ({"a": entry((2**62, 2**62), 0, 8)}, b"12345678", "disagree"),
        ({"a": entry([1] * 40, 0, 4)}, b"1234", "whole numbers"),
        ({"a": entry(dtype="F4")}, b"12345678", "unknown dtype"),
        ({"a": entry(dtype=["F32"])}, b"12345678", "unknown dtype"),
        ({"a": [1]}, b"", "no object"),
        ({"__metadata__": {"a": 1}}, b"", "strings to strings"),
        ({"__metadata__": []}, b"", "no object"),
        (b'{"a":{},"a":{}}', b"", "same name"),
        (b'{"\\ud800":{}}', b"", "is not text"),
        (b"[1]", b"", "not JSON"),
        (b"{" + b'"a":[' * 50_000, b"", "not JSON"),
        (b'{"a":\xff}', b"", "not JSON"),
    ],
)
def test_a_damaged_header_gives_one_error(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    path = raw(tmp_path / "x", header, data)
    with pytest.raises(AdapterError, match=said) as caught:
        read_safetensors(path)
    assert caught.value.file == str(path)


def test_a_header_longer_than_the_file_allocates_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="header length 99000000 exceeds"):
        read_safetensors(raw(tmp_path / "x", b"{}", length=99_000_000))


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    path = raw(
        tmp_path / "x", {"a": entry((1,), 0, 1, "U8"), "b": entry((2,), 1, 9)}, b"\x07" + struct.pack("<2f", 1, 2)
    )
    assert read_safetensors(path).tensors["b"].astype(np.float64).tolist() == [1, 2]


def test_reading_touches_no_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    size = 1 << 36
    raw(path, {"a": entry((size // 4,), 0, size)})
    os.truncate(path, path.stat().st_size + size)  # 64 GiB that occupy no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensor = read_safetensors(path).tensors["a"]
    assert tensor.nbytes == size and tensor[-1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_small_files_keep_no_file_open(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"a": np.ones(4)})
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files can be counted only where there is /proc")
    count = len(list(descriptors.iterdir()))
    kept = [read_safetensors(tmp_path / "x") for _ in range(20)]
    assert len(list(descriptors.iterdir())) == count
    assert len(kept) == 20


def test_the_writer_honours_the_umask_and_the_reference_reads_it(tmp_path: Path) -> None:
    tensors = {"a": np.ones((2, 3)).T, "b": np.array(2.0, ml_dtypes.bfloat16), "c": np.ones(4)[::2]}
    write_safetensors(tmp_path / "x", tensors, {"k": "v"})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        assert file.metadata() == {"k": "v"}
        assert file.get_tensor("a").tolist() == np.ones((3, 2)).tolist()
        assert file.get_tensor("c").tolist() == [1, 1]


def test_an_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_safetensors(tmp_path / "file" / "x", {"a": np.ones(1)})
    with pytest.raises(OutputError):
        write_safetensors(tmp_path, {"a": np.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_disk_that_is_full_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from lorascope.errors import OutputError; from lorascope.formats.safetensors_file import write_safetensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # as on a disk without more room\n"
        "try: write_safetensors(Path(sys.argv[1]), {'x': np.zeros(4000)})\n"
        "except OutputError as error: print(error.what)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"cannot be written: {os.strerror(errno.EFBIG)}", done.stderr
    assert not list(tmp_path.iterdir())
