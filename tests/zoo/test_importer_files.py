"""Importing keeps every adapter what it is."""

import numpy as np

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.zoo import Zoo, import_zoo


def test_a_row_that_names_the_file_in_a_peft_folder_keeps_its_scale(tmp_path):
    source = tmp_path / "own"
    update = LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32), scale=8.0)
    lorascope.write(Adapter({"q": update}), source / "one")
    (tmp_path / "labels.csv").write_text("path,y\none/adapter_model.safetensors,1\n")
    import_zoo(source, tmp_path / "labels.csv", out=tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    assert lorascope.read(zoo.adapter_path(zoo.rows()[0]))["q"].scale == 8.0
