"""Writing and reading again, over adapters of all kinds: what must come back, exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import OutputError
from lorascope.formats import stream_file
from lorascope.testing.strategies import adapters

EPS = np.finfo(np.float64).eps


def target_in(folder: str, format: str, name: str = "out") -> Path:
    return Path(folder) / (name if format == "peft" else f"{name}.safetensors")


def weights_of(target: Path) -> Path:
    return target / "adapter_model.safetensors" if target.is_dir() else target


def assert_same_updates(found: Adapter, expected: Adapter) -> None:
    assert set(found) == set(expected)
    for site, update in expected.items():
        again = found[site]
        assert (again.shape, again.dtype, again.layer) == (update.shape, update.dtype, update.layer)
        # a scale that alpha / rank cannot reach, and kohya's alpha 0, may move by a rounding; nothing else may
        delta = update.delta_weight(np.float64)
        np.testing.assert_allclose(again.delta_weight(np.float64), delta, rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("format", ["peft", "kohya"])
@given(adapter=adapters(max_side=12))
def test_what_is_written_is_read(format: str, adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = target_in(folder, format)
        formats.write(adapter, target, format=format)
        again = formats.read(target)
        assert again.provenance.format == format
        assert_same_updates(again, adapter)


@pytest.mark.parametrize(("first", "second"), [("peft", "kohya"), ("kohya", "peft")])
@given(adapter=adapters(max_side=12))
def test_one_format_written_as_the_other_has_the_same_updates(first: str, second: str, adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        formats.write(adapter, target_in(folder, first, "a"), format=first)
        between = formats.read(target_in(folder, first, "a"))
        formats.write(between, target_in(folder, second, "b"), format=second)
        assert_same_updates(formats.read(target_in(folder, second, "b")), adapter)


@pytest.mark.parametrize("format", ["peft", "kohya"])
@settings(max_examples=25)
@given(
    adapter=adapters(max_side=8),
    extra=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).map("odd {}".format),
        st.sampled_from([np.float16, np.int64, np.bool_]),
        max_size=2,
    ),
    metadata=st.dictionaries(st.text("abé_", min_size=1, max_size=4), st.text("xyΔ", max_size=4), max_size=2),
    space=st.text(" \n\t", max_size=4),
)
def test_an_unedited_file_is_written_back_byte_for_byte(
    format: str, adapter: Adapter, extra: dict[str, Any], metadata: dict[str, str], space: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = target_in(folder, format, "a"), target_in(folder, format, "b")
        formats.write(adapter, source, format=format)
        tensors = safetensors.numpy.load_file(weights_of(source))
        tensors |= {name: np.ones(3, dtype) for name, dtype in extra.items()}
        safetensors.numpy.save_file(tensors, weights_of(source), metadata)
        config = source / "adapter_config.json"
        if format == "peft":
            config.write_text(config.read_text() + space)
        read = formats.read(source)
        assert set(read.leftovers) == set(extra)
        formats.write(read, target, format=format)
        again = formats.read(target)
        assert again.original is not None
        assert {name: (value.dtype, value.shape, value.tobytes()) for name, value in again.original.items()} == {
            name: (value.dtype, value.shape, value.tobytes()) for name, value in tensors.items()
        }
        assert dict(again.provenance.metadata) == metadata
        if format == "peft":
            assert (target / "adapter_config.json").read_bytes() == config.read_bytes()


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_an_output_in_the_way_or_in_a_file_leaves_nothing(format: str, tmp_path: Path) -> None:
    adapter = Adapter({"q": LowRank(np.ones((3, 1)), np.ones((1, 2)))})
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    in_the_way = tmp_path / ("file" if format == "peft" else "folder")
    for target in (in_the_way, tmp_path / "file" / "inside"):
        with pytest.raises(OutputError) as caught:
            formats.write(adapter, target, format=format)
        assert caught.value.file == str(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_a_write_that_fails_midway_keeps_what_was_there(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_in(str(tmp_path), format)
    formats.write(Adapter({"q": LowRank(np.ones((3, 1)), np.ones((1, 2)))}), target, format=format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    write_data = stream_file._write_data  # pyright: ignore[reportPrivateUsage]: the disk is full in its midst

    def full(stream: Any, slot: Any, tensor: Any) -> None:
        write_data(stream, slot, tensor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream_file, "_write_data", full)
    with pytest.raises(OutputError, match="No space left"):
        formats.write(Adapter({"v": LowRank(np.ones((3, 1)), np.ones((1, 2)))}), target, format=format)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
