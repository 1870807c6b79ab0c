"""``lorascope inspect`` as a person and as a program use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.cli import main
from lorascope.errors import AdapterError

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "inspect.schema.json").read_text("utf-8"))


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from lorascope.cli import main; main()", "inspect", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"} | environment,
        timeout=120,
        check=False,
    )


def objects(output: str) -> list[dict[str, Any]]:
    values = [json.loads(line) for line in output.split("\n") if line]
    for value in values:
        jsonschema.validate(value, SCHEMA, cls=jsonschema.Draft202012Validator)
    return values


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sites = {
        "embed": LowRank(rng.standard_normal((4, 2)), np.ones((2, 9)), layer="embedding", is_transposed=True),
        "layers.0.q": LowRank(np.zeros((4, 2)), np.ones((2, 3)), scale=0.5),
    }
    formats.write(Adapter(sites), tmp_path / "one")
    return tmp_path / "one"


def test_one_adapter_gives_one_object_of_the_schema(adapter_folder: Path) -> None:
    done = run(adapter_folder, "--json")
    assert done.returncode == 0 and done.stderr == ""
    (value,) = objects(done.stdout)
    assert value["schema_version"] == 2 and value["format"] == "peft" and value["kind"] == "lora"
    assert [(site["name"], site["layer"], site["shape"]) for site in value["sites"]] == [
        ("layers.0.q", "linear", [4, 3]),
        ("embed", "embedding", [4, 9]),
    ]
    assert value["sites"][0]["stable_rank"] is None


def test_text_says_what_it_is(adapter_folder: Path) -> None:
    done = run(adapter_folder / "adapter_model.safetensors")
    assert done.returncode == 0
    for part in ("peft · lora", "layers.0.q", "4 × 3", "ΔW is zero at layers.0.q"):
        assert part in done.stdout


def test_a_bad_file_in_a_tree_is_an_error_line_and_the_rest_goes_on(adapter_folder: Path) -> None:
    (adapter_folder.parent / "broken").mkdir()
    (adapter_folder.parent / "broken" / "adapter_model.safetensors").write_bytes(b"\r\n")
    done = run(adapter_folder.parent, "--json")
    assert done.returncode == 2
    error, value = objects(done.stdout)
    assert error["error"] == "AdapterError" and error["file"].endswith("broken/adapter_model.safetensors")
    assert value["format"] == "peft"
    text = run(adapter_folder.parent)
    assert text.returncode == 2
    assert "too short for a safetensors header" in text.stderr and "peft · lora" in text.stdout


def test_an_adapter_with_checkpoints_inside_is_one_adapter(adapter_folder: Path) -> None:
    formats.write(formats.read(adapter_folder), adapter_folder / "checkpoint-5")
    done = run(adapter_folder, "--json")
    assert len(objects(done.stdout)) == 1
    assert "1 more adapter " in done.stderr


def test_errors_go_where_they_are_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert done.returncode == 2
    (error,) = objects(done.stdout)
    assert error["what"] == "the folder holds no adapter"
    text = run(tmp_path)
    assert text.returncode == 2 and text.stdout == ""
    assert "the folder holds no adapter" in text.stderr and "Traceback" not in text.stderr


def test_sites_are_limited_on_request(adapter_folder: Path) -> None:
    assert "stable rank" in run(adapter_folder).stdout
    assert "stable rank" not in run(adapter_folder, "--sites", "0").stdout
    assert run(adapter_folder, "--sites", "many").returncode == 2


def test_a_local_file_needs_no_torch_and_no_hub_client(adapter_folder: Path) -> None:
    code = (
        "import sys; from lorascope.cli import main\n"
        "sys.argv[1:] = ['inspect', sys.argv[1], '--json']\n"
        "try: main()\n"
        "finally: sys.stderr.write(str([n for n in ('torch', 'huggingface_hub', 'pyarrow') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, adapter_folder], capture_output=True, text=True, check=False)
    assert done.stderr == "[]"


def inspect_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, columns: int = 80
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["lorascope", "inspect", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, *capsys.readouterr()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 13648688\n"


@pytest.mark.parametrize(
    ("name", "data", "what", "present"),
    [
        ("adapter_model.safetensors", b"", "the file is empty", "hint"),
        ("adapter_model.safetensors", b"<!DOCTYPE html><html></html>", "a web page", "hint"),
        ("adapter_model.bin", b"<html>", "a web page", "hint"),
        ("adapter_model.safetensors", POINTER, "Git LFS pointer", "found"),
        ("adapter_model.safetensors", b"\r\n", "too short", "expected"),
        ("", b"", "the folder holds no adapter", "expected"),
        ("missing/there.safetensors", b"", "no such file or directory", "hint"),
    ],
)
def test_a_bad_location_is_one_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: bytes,
    what: str,
    present: str,
) -> None:
    location = tmp_path / name
    if location.parent.is_dir() and name:
        location.write_bytes(data)
    code, output, errors = inspect_here(monkeypatch, capsys, location, "--json")
    (error,) = objects(output)
    assert (code, errors, error["file"]) == (2, "", str(location))
    assert what in error["what"] and error[present]
    code, output, errors = inspect_here(monkeypatch, capsys, location)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and what in errors and "Traceback" not in errors


def test_a_tree_is_json_lines_and_its_errors_do_not_stop_it(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (adapter_folder / "adapter_model.safetensors").read_bytes()
    for name, data in {"a": whole[:60], "b": POINTER, "z": b""}.items():
        (adapter_folder.parent / name).mkdir()
        (adapter_folder.parent / name / "adapter_model.safetensors").write_bytes(data)
    code, output, errors = inspect_here(monkeypatch, capsys, adapter_folder.parent, "--json")
    values = objects(output)
    assert (code, errors) == (2, "")
    assert ["error" in value for value in values] == [True, True, False, True]
    assert [Path(value["file"]).parent.name for value in values if "error" in value] == ["a", "b", "z"]
    code, output, errors = inspect_here(monkeypatch, capsys, adapter_folder.parent)
    assert code == 2 and errors.count("error: ") == 3 and output.count("peft · lora") == 1


def test_a_text_of_80_columns_has_the_path_in_one_piece_and_the_table(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = adapter_folder.parent / ("a_long_name_of_a_folder" * 4) / "one"
    formats.write(formats.read(adapter_folder), deep)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal …
    monkeypatch.setenv("TERM", "dumb")  # … of 80 columns, without colours
    code, output, errors = inspect_here(monkeypatch, capsys, deep)
    assert (code, errors) == (0, "")
    path, *rest = output.splitlines()
    assert path.endswith(str(deep / "adapter_model.safetensors"))
    assert max(map(len, rest)) <= 80
    assert any("out × in" in line and "stable rank" in line for line in rest)
    assert any(line.startswith("embed") and "4 × 9" in line for line in rest)


def test_hostile_names_are_harmless_in_text_and_whole_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = "x\x1b[2J\x07[red]q[/red]\u202e\u2028\r\n[link=https://example.org]"
    update = LowRank(np.zeros((4, 2)), np.ones((2, 3)))
    formats.write(Adapter({site: update}, Provenance("peft", base_model=f"base {site}")), tmp_path / "one")
    code, output, errors = inspect_here(monkeypatch, capsys, tmp_path / "one", columns=160)
    assert (code, errors) == (0, "")
    assert not set("\x1b\x07\u202e\u2028\r") & set(output)
    assert "[red]q[/red]" in output and "[link=https://example.org]" in output
    code, output, _ = inspect_here(monkeypatch, capsys, tmp_path / "one", "--json")
    (value,) = objects(output)
    assert (code, value["sites"][0]["name"]) == (0, site)


def test_the_format_can_be_named_and_an_unknown_one_is_told(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect_here(monkeypatch, capsys, adapter_folder, "--format", "peft")[0] == 0
    code, output, errors = inspect_here(monkeypatch, capsys, adapter_folder, "--format", "koya")
    assert (code, output) == (2, "") and "no such format" in errors and "kohya" in errors


def test_the_schema_is_a_schema_and_refuses_what_it_does_not_describe() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for value in ({}, {"schema_version": 2}, {"error": "AdapterError"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, SCHEMA, cls=jsonschema.Draft202012Validator)
    error = AdapterError("it is not right", file="a", key="k", expected=1, found=2, hint="mend it").as_dict()
    jsonschema.validate(error, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_what_goes_into_a_pipe_is_not_broken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 2)), rng.standard_normal((2, 3))
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    names = [f"unet.{block}.{part}.{name}" for part in ("attn1", "attn2") for name in ("to_k", "to_out.0")]
    shared = [f"unet.{block}.attn1.{name}" for name in ("to_k", "to_q")]
    names.append("text_encoder." + "a_name_that_is_long." * 15 + "q")
    formats.write(Adapter({name: LowRank(B, A) for name in names}), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()  # for a long note
    lines = run(tmp_path / "a", "--sites", "all", COLUMNS="40").stdout.splitlines()
    for name in names:
        assert len([line for line in lines if name in line]) == 1, name
    assert [line for line in lines if line.startswith(" !")]
    formats.write(Adapter({name: LowRank(B, A) for name in shared}), tmp_path / "b")
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k " in run(tmp_path / "b").stdout
    assert all(line == line.rstrip() and len(line) < 1000 for line in lines)
