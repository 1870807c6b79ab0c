"""Weights that lie beside an adapter: named, pickles that can run code above all, and nothing of them loaded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.scan import verify


class Executing:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 2), (2, 3)))
    formats.write(Adapter({"model.q": LowRank(B, A)}), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["adapter_model.bin", "model.pkl", "pytorch_model.bin", "optimizer.pt"])
def test_a_pickle_that_can_run_code_is_a_warning(adapter: Path, name: str, protocol: int) -> None:
    place = adapter.parent / "executed"
    (adapter / name).write_bytes(pickle.dumps({"q": Executing(place)}, protocol))
    (finding,) = verify(adapter)
    assert (finding.code, finding.severity) == ("pickle-beside", "warning")
    assert name in finding.text and ".mkdir" in finding.text and not place.exists()


def test_a_pickle_without_an_ending_is_seen_by_its_first_bytes(adapter: Path) -> None:
    (adapter / "weights").write_bytes(pickle.dumps(Executing(adapter.parent / "executed")))
    assert [one.code for one in verify(adapter)] == ["pickle-beside"]


def test_other_weights_are_a_note_and_texts_are_nothing(adapter: Path) -> None:
    assert verify(adapter) == []
    (adapter / "README.md").write_text("# An adapter")
    (adapter / "LICENSE").write_text("(c) {all} of it")
    (adapter / "old.gguf").write_bytes(b"GGUF")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    os.mkfifo(adapter / "pipe.bin")  # reading it would never end
    (finding,) = verify(adapter)
    assert (finding.code, finding.severity) == ("not-read", "note")
    assert finding.text == "also here, not read: adapter_model.bin, old.gguf"


def test_the_state_of_a_trainer_is_a_note(adapter: Path) -> None:
    torch_like = b"\x80\x02ctransformers.training_args\nTrainingArguments\n)\x81."
    (adapter / "training_args.bin").write_bytes(torch_like)
    assert [(one.code, one.severity) for one in verify(adapter)] == [("not-read", "note")]
    (adapter / "training_args.bin").write_bytes(torch_like[:-1] + b"0cos\nsystem\n.")
    assert [(one.code, one.severity) for one in verify(adapter)] == [("pickle-beside", "warning")]
    (adapter / "training_args.bin").rename(adapter / "adapter_model.bin")
    assert [(one.code, one.severity) for one in verify(adapter)] == [("pickle-beside", "warning")]


def test_a_pickle_beside_an_adapter_that_cannot_be_read_is_named_too(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "model.pkl").write_bytes(pickle.dumps(Executing(adapter.parent / "executed")))
    assert [one.severity for one in verify(adapter)] == ["error", "warning"]
