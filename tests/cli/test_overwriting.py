"""Every verb that makes something leaves what is there, unless it is told to replace it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main
from lorascope.formats.safetensors_file import write_safetensors

Run = Callable[..., tuple[int, str]]
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bake": ("out", ("base", "a")),
    "bake a file": ("out.safetensors", ("base/model.safetensors", "a")),
    "compress": ("out.pack", ("a", "b")),
    "convert": ("out", ("a", "--to", "peft")),
    "convert to a file": ("out.safetensors", ("a", "--to", "kohya")),
    "convert to a folder for diffusers": ("out", ("a", "--to", "diffusers")),
    "decompress": ("out", ("pack",)),
    "decompress to files": ("out", ("pack", "--to", "kohya")),
    "extract": ("out", ("base", "tuned", "--rank", "1")),
    "merge": ("out", ("a", "b")),
    "resize": ("out", ("a", "--rank", "1")),
    "resize to a file": ("out.safetensors", ("a", "--rank", "1", "--to", "kohya")),
    "serve-pack": ("out", ("a", "b")),
}
if importlib.util.find_spec("matplotlib"):
    VERBS["compare"] = ("out.png", ("a", "b"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The exit code and the errors of a verb that writes ``output``, in a folder with adapters, a base and a pack."""
    monkeypatch.chdir(tmp_path)

    def call(verb: str, output: str, *arguments: str) -> tuple[int, str]:
        word = verb.partition(" ")[0]
        option = {"convert": (), "compare": ("--plot",)}.get(word, ("-o",))
        source, *others = arguments
        words = (word, source, output, *others) if word == "convert" else (word, source, *others, *option, output)
        monkeypatch.setattr("sys.argv", ["lorascope", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    random = np.random.default_rng(0)
    for name in "ab":
        factors = random.standard_normal((4, 2)).astype(np.float32), random.standard_normal((2, 4)).astype(np.float32)
        formats.write(Adapter({"model.q_proj": LowRank(*factors)}), name)
    for name in ("base", "tuned"):
        Path(name).mkdir()
        weight = random.standard_normal((4, 4)).astype(np.float32)
        write_safetensors(Path(name, "model.safetensors"), {"model.q_proj.weight": weight})
    assert call("compress", "pack", "a", "b")[0] == 0
    return call


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_there_is_replaced_only_when_asked_and_whole(verb: str, run: Run, tmp_path: Path) -> None:
    name, arguments = VERBS[verb]
    output = tmp_path / name
    code, err = run(verb, name, *arguments)
    assert code == 0, err
    made = contents(output)
    assert made
    for file in made:
        Path(file).write_bytes(b"of another time")
    before = contents(output)
    code, err = run(verb, name, *arguments)
    assert code == 2 and "already there" in err and "--overwrite" in err
    assert contents(output) == before
    if output.is_dir():
        (output / "checkpoint-1").mkdir()
        (output / "checkpoint-1" / "notes").write_text("kept")
        before = contents(output)
        code, err = run(verb, name, *arguments, "--overwrite")
        assert code == 2 and "more than what would be replaced (found checkpoint-1/)" in err
        assert contents(output) == before
        (output / "checkpoint-1" / "notes").unlink()
        (output / "checkpoint-1").rmdir()
    beside = set(tmp_path.iterdir())
    code, err = run(verb, name, *arguments, "--overwrite")
    assert code == 0, err
    assert set(contents(output)) == set(made) and b"of another time" not in contents(output).values()
    assert set(tmp_path.iterdir()) == beside


@pytest.mark.parametrize(
    ("verb", "output", "arguments"),
    [
        ("bake", "base", ("base", "a")),
        ("bake", "base/model.safetensors", ("base/model.safetensors", "a")),
        ("extract", "tuned/model.safetensors", ("base", "tuned/model.safetensors", "--rank", "1", "--to", "kohya")),
        ("convert", "a", ("a", "--to", "peft")),
        ("merge", "b", ("a", "b")),
        ("resize", "a", ("a", "--rank", "1")),
        ("compress", "a/adapter_model.safetensors", ("a", "b")),
        ("serve-pack", "served", ("served/peft/a", "served/peft/b")),
        ("decompress", "packs", ("packs/a.safetensors", "--to", "kohya")),
    ],
)
def test_no_source_is_replaced_however_it_is_asked(
    verb: str, output: str, arguments: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    assert run("serve-pack", "served", "a", "b")[0] == 0
    (tmp_path / "packs").mkdir()
    assert run("compress", "packs/a.safetensors", "a")[0] == 0
    before = contents(tmp_path)
    code, err = run(verb, output, *arguments, "--overwrite")
    assert code == 2 and "the source is never overwritten" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_is_that_of_what_is_written(verb: str, run: Run, tmp_path: Path) -> None:
    """A folder is not called as a file of weights, and a file of weights has its suffix; packs have the user's own."""
    name, arguments = VERBS[verb]
    before = set(tmp_path.iterdir())
    other = {"out": "out.safetensors", "out.safetensors": "out"}.get(name)
    if other is None or "diffusers" in arguments:
        return
    code, err = run(verb, other, *arguments)
    assert code == 2 and ("a folder" in err or "ends in .safetensors" in err), err
    assert set(tmp_path.iterdir()) == before


def test_nothing_in_a_folder_that_is_compressed_is_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "many" / name)
    (tmp_path / "many" / "notes.json").write_text("{}")
    code, errors = run("compress", "many/notes.json", "many", "--overwrite")
    assert code == 2 and "lies in the folder of the source" in errors
    assert (tmp_path / "many" / "notes.json").read_text() == "{}"
