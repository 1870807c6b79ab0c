"""IA3 and tuned norms against PEFT: files that it saves are read as it merges them, and it loads what is written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.errors import AdapterError
from oracles.peft_merges import (
    Make,
    checked,
    checked_as_loaded,
    convolutions,
    gpt2_layers,
    linears,
)
from peft_layers import Layers

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]


def grouped() -> Layers:
    return Layers(two=torch.nn.Conv2d(8, 12, 3, groups=4), cube=torch.nn.Conv3d(4, 6, 2), plain=torch.nn.Linear(6, 6))


@pytest.mark.parametrize("make", [linears, convolutions, grouped, gpt2_layers])
@pytest.mark.parametrize("which", ["none", "all", "some", "pattern"])
def test_ia3(make: Make, which: str, tmp_path: Path) -> None:
    names = [name for name, _ in make().named_children()]
    feedforward: Any = {"none": [], "all": names, "some": names[:1], "pattern": f"({'|'.join(names[:2])})"}[which]
    fields = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    config = peft.IA3Config(
        target_modules=names, feedforward_modules=names if which == "pattern" else feedforward, **fields
    )
    if which == "pattern":  # both must be strings
        config = peft.IA3Config(target_modules=f"({'|'.join(names)})", feedforward_modules=feedforward, **fields)
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "IA3")
    on_input = {site for site, update in adapter.items() if update.axis == "in"}  # type: ignore[attr-defined]  # of IA3
    assert on_input == {"none": set(), "all": set(names), "some": set(names[:1]), "pattern": set(names[:2])}[which]


def test_gates_on_inputs_and_outputs_whose_names_end_alike(tmp_path: Path) -> None:
    def make() -> Layers:
        return Layers(fc=torch.nn.Linear(6, 6), x_fc=torch.nn.Linear(6, 4))

    config = peft.IA3Config(target_modules="fc|x_fc", feedforward_modules="fc")
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "IA3")
    assert formats.read(tmp_path / "b")["fc"].axis == "in"  # type: ignore[attr-defined]  # of IA3 alone


def test_a_gate_of_a_convolution_needs_the_configuration(tmp_path: Path) -> None:
    checked(convolutions, peft.IA3Config(feedforward_modules=["two"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for value, said in ((None, "does not say which"), (7, "list of names"), ("(.*)*x", "too complex")):
        path.write_text(json.dumps(config | {"feedforward_modules": value}))
        with pytest.raises(AdapterError, match=said):
            formats.read(tmp_path)


def test_tuned_norms(tmp_path: Path) -> None:
    def make() -> Layers:
        return Layers(
            norm=torch.nn.LayerNorm(6),
            bare=torch.nn.RMSNorm(5),
            group=torch.nn.GroupNorm(2, 8),
            fc=torch.nn.Linear(3, 4),
        )

    adapter = checked(make, peft.LNTuningConfig(), tmp_path)
    assert {update.kind for update in adapter.values()} == {"norm"} and not adapter.leftovers
    assert adapter["norm"].layer == "norm" and adapter["fc"].layer == "linear"
    base = np.ones(6)
    with pytest.raises(AdapterError, match="does not fit the base"):
        adapter["norm"].delta_bias(base=np.ones(5))
    assert adapter["norm"].delta_weight(np.float64, base=base).shape == (6,)
