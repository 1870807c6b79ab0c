"""Any damage to an adapter file gives an adapter or one ``AdapterError``, and nothing else ever."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope import formats
from lorascope.errors import AdapterError
from lorascope.report import summarise

TENSORS = {
    "base_model.model.q.lora_A.weight": np.ones((2, 3), np.float32),
    "base_model.model.q.lora_B.weight": np.ones((4, 2), np.float16),
    "base_model.model.c.lora_A.weight": np.ones((2, 3, 2, 2), np.float32),
    "base_model.model.c.lora_B.weight": np.ones((4, 2, 1, 1), np.float32),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q": 1}}
WHOLE = safetensors.numpy.save(TENSORS, {"format": "pt"})
HEADER_END = 8 + struct.unpack("<Q", WHOLE[:8])[0]


def reads_or_refuses(weights: bytes, config: bytes | None = None, *, name: str = "adapter_model.safetensors") -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).write_bytes(weights)
        (folder / "adapter_config.json").write_bytes(json.dumps(CONFIG).encode() if config is None else config)
        try:
            adapter = formats.read(folder)
            json.dumps(summarise(adapter), allow_nan=False)
            adapter.norm()
        except AdapterError as error:
            assert error.file is not None and place in error.file
            str(error).encode("utf-8")


@given(st.integers(0, len(WHOLE) - 1))
def test_truncation(length: int) -> None:
    reads_or_refuses(WHOLE[:length])


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for place, value in changes:
        damaged[place] = value
    reads_or_refuses(bytes(damaged))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([*TENSORS, "__metadata__", "base_model.model.q.lora_A.default.weight", "x.alpha"]),
    st.sampled_from([None, "dtype", "shape", "data_offsets"]),
    json_values | st.lists(st.integers(-3, 200), max_size=4) | st.sampled_from(["F16", "F64", "BOOL", "BF16", "C64"]),
)
def test_a_changed_header_entry(name: str, field: str | None, value: Any) -> None:
    header = json.loads(WHOLE[8:HEADER_END])
    if field is None or not isinstance(header.get(name), dict):
        header[name] = value
    else:
        header[name][field] = value
    text = json.dumps(header).encode()
    reads_or_refuses(struct.pack("<Q", len(text)) + text + WHOLE[HEADER_END:])


@given(
    st.sampled_from(
        [
            "r",
            "lora_alpha",
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            "use_dora",
            "fan_in_fan_out",
            "peft_type",
            "bias",
            "modules_to_save",
            "init_lora_weights",
            "target_parameters",
            "base_model_name_or_path",
            "layer_replication",
        ]
    ),
    json_values | st.dictionaries(st.text("a.*+?^$()[]|\\{}q", max_size=8), json_values, max_size=2),
)
def test_a_changed_configuration_field(field: str, value: Any) -> None:
    reads_or_refuses(WHOLE, json.dumps(CONFIG | {field: value}).encode())


@given(st.binary(max_size=64))
def test_bytes_of_any_kind(data: bytes) -> None:
    reads_or_refuses(data)
    reads_or_refuses(WHOLE, data)


@given(st.integers(0, 120), st.binary(max_size=8))
def test_a_damaged_configuration(place: int, data: bytes) -> None:
    text = json.dumps(CONFIG).encode()
    reads_or_refuses(WHOLE, text[:place] + data + text[place + len(data) :])
    reads_or_refuses(WHOLE, text[:place])


def _pickled(*, is_zip: bool) -> bytes:
    stream = io.BytesIO()
    state = {name: torch.as_tensor(value) for name, value in TENSORS.items()}
    torch.save(state, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


PICKLED = {is_zip: _pickled(is_zip=is_zip) for is_zip in (True, False)}


@settings(max_examples=60)
@given(st.booleans(), st.data())
def test_a_damaged_pickle(is_zip: bool, data: st.DataObject) -> None:
    damaged = bytearray(PICKLED[is_zip])
    places = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=3)):
        damaged[place] = value
    kept = len(damaged) if data.draw(st.booleans()) else data.draw(st.integers(0, len(damaged)))
    reads_or_refuses(bytes(damaged[:kept]), name="adapter_model.bin")
