"""What the fuzzer found in the containers, kept as tests of their own."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fuzz.corpus import corpus
from lorascope import formats
from lorascope.errors import AdapterError
from lorascope.formats.headers import read_headers
from lorascope.testing.samples import npy_bytes, zip_bytes


@pytest.mark.parametrize("target", ["nowhere", ".", "/dev/zero"])
def test_a_configuration_that_is_no_file_is_not_taken_for_a_missing_one(tmp_path: Path, target: str) -> None:
    from lorascope.testing.samples import Link, encoded, materialised

    sample = next(one for one in corpus() if one.name == "peft")
    materialised(encoded(sample) | {"adapter_config.json": Link(target)}, tmp_path)
    for reader in (formats.read, read_headers):
        with pytest.raises(AdapterError, match="not a regular file"):
            reader(tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no such file system")  # noqa: PTH110
def test_a_file_of_the_system_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to("/proc/self/maps")
    with pytest.raises(AdapterError, match="empty"):
        formats.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", [b"(" * 3000, b"(" * 90, b"-" * 9000 + b"1"])
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_an_array_header_that_is_too_deep_is_damage(tmp_path: Path, text: bytes, version: bytes) -> None:
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    (tmp_path / "x.npz").write_bytes(zip_bytes({"q.lora_a.npy": b"\x93NUMPY" + version + length + text}))
    with pytest.raises(AdapterError, match="damaged"):
        formats.read(tmp_path / "x.npz")


def test_an_archive_that_unfolds_to_far_more_than_it_has_is_refused_before_it_is_unfolded(tmp_path: Path) -> None:
    bomb = npy_bytes(np.zeros(80 << 20, np.uint8))
    (tmp_path / "x.npz").write_bytes(zip_bytes({"q.lora_a.npy": bomb}, zipfile.ZIP_DEFLATED))
    with pytest.raises(AdapterError, match="declares too much data"):
        formats.read(tmp_path / "x.npz")
