"""A predictor and real adapter files of other bases: each is one clear error, and never a prediction."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorascope import formats
from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor
from planted import planted_dataset

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)

if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

INDEX: dict[str, Any] = json.loads((ROOT / "INDEX.json").read_text())
FILES = [entry for entry in INDEX["files"] if entry.get("first3") and entry["format"] != "loralib"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return fit_predictor(planted_dataset(30), "size", MODELS["ridge"](features=("log-norm",)))


@pytest.mark.parametrize("entry", FILES, ids=lambda entry: entry["path"])
def test_a_file_of_another_base_is_refused(entry: dict[str, Any], predictor: Predictor) -> None:
    with pytest.raises(PredictorError, match="made for adapters of other layers") as caught:
        predictor.predict([formats.read(ROOT / entry["path"])])
    assert caught.value.file
    assert caught.value.expected
    assert "of them foreign" in str(caught.value.found)
    assert isinstance(caught.value, LorascopeError)
