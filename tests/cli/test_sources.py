"""What the verbs take of a folder, and what they say of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The output and the errors of a verb that ends well."""

    def call(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["lorascope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert not stop.value.code, captured.err
        return captured.out, captured.err

    return call


def write(path: Path, to: str = "peft") -> None:
    random = np.random.default_rng(len(str(path)))
    update = LowRank(
        random.standard_normal((4, 2)).astype(np.float32), random.standard_normal((2, 3)).astype(np.float32)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(Adapter({"m.q": update}), path, format=to)


def counts(run: Run, folder: Path) -> list[int]:
    """How many adapters each verb takes."""
    aside = folder.parent
    taken: list[Any] = [
        json.loads(run("compress", folder, "-o", aside / "pack", "--json")[0])["adapters"],
        json.loads(run("serve-pack", folder, "-o", aside / "served", "--json")[0])["adapters"],
        run("inspect", folder, "--json")[0].splitlines(),
    ]
    indexed = json.loads(run("index", folder, "-o", aside / "index", "--json")[0])
    return [*map(len, taken), indexed["adapters"]]


def test_a_loose_file_hides_no_folders_and_a_known_name_no_files(tmp_path: Path, run: Run) -> None:
    mixed, known = tmp_path / "1" / "mixed", tmp_path / "2" / "known"
    write(mixed / "a")
    write(mixed / "longer")
    write(mixed / "something.safetensors", "kohya")
    assert counts(run, mixed) == [3, 3, 3, 3]
    write(known / "adapters.safetensors", "kohya")
    write(known / "b.safetensors", "kohya")
    assert counts(run, known) == [2, 2, 2, 2]
    (own,) = json.loads(run("find", known, "--in", known, "--json")[0])["found"]
    assert own["path"].endswith("b.safetensors")  # reading the folder reads the known name, which is left out


def test_a_training_run_is_its_last_state_and_the_rest_is_said(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "all" / "run"
    for name in ("", "checkpoint-1", "checkpoint-20"):
        write(folder / name)
    write(folder / "extra.safetensors", "kohya")
    assert counts(run, folder) == [1, 1, 1, 3]
    for verb in (("compress", "-o", tmp_path / "pack"), ("inspect",)):
        _, err = run(verb[0], folder, *verb[1:])
        assert "2 more adapters in its subfolders, not" in err
        assert "1 weights file beside an adapter's own, not" in err and "extra.safetensors" in err
    for verb in (("index", "-o", tmp_path / "index"), ("lineage",), ("find", "--duplicates")):
        assert "1 weights file beside an adapter's own, not" in run(verb[0], folder, *verb[1:])[1]
    out, err = run("verify", folder)
    assert out.count("extra.safetensors") == 1 and "extra" not in err


def test_an_adapter_that_a_folder_itself_is_has_the_name_of_the_folder(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "run" / "adapters.safetensors", "kohya")
    write(tmp_path / "run" / "checkpoint-1")
    report = json.loads(run("compress", tmp_path / "run", "-o", tmp_path / "pack", "--json")[0])
    assert set(report["adapters"]) == {"run", "checkpoint-1"}
