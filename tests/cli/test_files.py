"""The verbs over adapter files as a person runs them: convert, verify, bake, formats."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorascope", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    update = LowRank(
        rng.standard_normal((6, 2)).astype(np.float32), rng.standard_normal((2, 4)).astype(np.float32), scale=2.0
    )
    formats.write(Adapter({"model.q": update, "model.v": update}), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_convert_tells_what_moved(adapter: Path, tmp_path: Path) -> None:
    done = run("convert", adapter, tmp_path / "a.safetensors", "--to", "kohya")
    assert done.returncode == 0 and "peft → kohya: 2 sites" in done.stdout
    assert "relative error of ΔW: 0" in done.stdout
    done = run("convert", adapter, tmp_path / "b.safetensors", "--to", "kohya", "--dtype", "float16", "--json")
    (report,) = objects(done.stdout)
    assert done.returncode == 0 and report["schema_version"] == 1
    assert 0 < report["relative_error"] < 1e-3 and report["lost"] == [] and report["sites"] == 2


def test_convert_refuses_a_loss_and_says_how_to_allow_it(adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    tensors = dict(safetensors.numpy.load_file(weights))
    safetensors.numpy.save_file(tensors | {"base_model.model.score.weight": np.ones((2, 2))}, weights)
    target = tmp_path / "a.safetensors"
    done = run("convert", adapter, target, "--to", "kohya", "--json")
    assert done.returncode == 2 and "allow-loss" in objects(done.stdout)[0]["hint"] and not target.exists()
    done = run("convert", adapter, target, "--to", "kohya", "--allow-loss")
    assert done.returncode == 0 and "lost: base_model.model.score.weight" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("--to", "nothing"), "no such format"), (("--to", "kohya", "--dtype", "float99"), "dtype")],
)
def test_convert_says_what_is_wrong_with_an_option(
    adapter: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    done = run("convert", adapter, tmp_path / "x", *arguments)
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr


def test_verify_exits_with_what_it_found(adapter: Path, tmp_path: Path) -> None:
    done = run("verify", adapter)
    assert (done.returncode, done.stdout.strip().endswith("ok")) == (0, True)
    (adapter / "adapter_config.json").unlink()
    done = run("verify", adapter, "--json")
    (value,) = objects(done.stdout)
    assert done.returncode == 1 and value["ok"] is False
    assert [finding["code"] for finding in value["findings"]] == ["config-missing"]
    assert run("verify", tmp_path / "nothing").returncode == 2


def test_verify_goes_on_after_a_bad_file(adapter: Path, tmp_path: Path) -> None:
    (adapter.parent / "bad.safetensors").write_bytes(b"\x00\x00")
    done = run("verify", adapter.parent, "--json")
    assert done.returncode == 1
    *adapters, last = objects(done.stdout)
    assert sorted((Path(one["path"]).name, one["ok"]) for one in adapters) == [
        ("adapter", True),
        ("bad.safetensors", False),
    ]
    assert last["summary"] | {"not_looked_at": {}} == {
        "adapters": 2,
        "ok": 1,
        "warnings": 0,
        "errors": 1,
        "not_checked": 0,
        "not_looked_at": {},
    }
    assert run("verify", adapter.parent).stdout.splitlines()[-1] == "2 adapters: 1 ok, 0 with warnings, 1 with errors"


def test_verify_says_what_it_read(adapter: Path) -> None:
    (adapter / "README.md").write_text("read me")
    (value,) = objects(run("verify", adapter, "--json").stdout)
    weights = adapter / "adapter_model.safetensors"
    assert (value["format"], value["container"]) == ("peft", "safetensors")
    assert (value["weights"], value["size"]) == (str(weights), weights.stat().st_size)
    assert value["not_looked_at"] == {str(adapter): {"count": 1, "files": ["README.md"]}}


def test_verify_passes_nothing_by_in_silence(adapter: Path) -> None:
    tree = adapter.parent
    (tree / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tree / "half").mkdir()
    (tree / "half" / "adapter_config.json").write_text("{}")
    (tree / "notes").write_text("words")
    (tree / ".hidden").mkdir()
    done = run("verify", tree)
    assert done.returncode == 1
    assert "warning pickle-beside: also here, not read: model.pkl" in done.stdout and "os.system" in done.stdout
    assert "error weights-missing: an adapter_config.json without weights in half" in done.stdout
    assert f"2 files not looked at in {tree}: .hidden/, notes" in done.stdout
    (tree / "b.safetensors").write_bytes(b"\x00\x00")
    *_, around, last = objects(run("verify", tree, "--json").stdout)
    assert around["path"] == str(tree) and around["ok"] is False
    assert [one["code"] for one in around["findings"]] == ["weights-missing", "pickle-beside"]
    assert last["summary"]["not_looked_at"][str(tree)]["files"] == [".hidden/", "notes"]
    done = run("verify", tree / "half", "--json")
    assert [one["code"] for one in objects(done.stdout)[0]["findings"]] == ["weights-missing"]


def test_verify_takes_the_scale_that_a_file_leaves_open(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = {
        "layers.0.q.lora_A": rng.standard_normal((2, 4)).astype(np.float32),
        "layers.0.q.lora_B": rng.standard_normal((6, 2)).astype(np.float32),
    }
    safetensors.numpy.save_file(factors, tmp_path / "old.safetensors")
    done = run("verify", tmp_path / "old.safetensors")
    assert done.returncode == 1 and "--scale" in done.stdout
    done = run("verify", tmp_path / "old.safetensors", "--scale", 2)
    assert done.returncode == 0 and "scale 2 as given" in done.stdout, done.stdout


def test_without_torch_a_pickle_is_not_checked_and_not_called_broken(adapter: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"model.q.lora_A.weight": torch.ones(2, 3)}, adapter.parent / "a.bin")
    script = "import sys; sys.modules['torch'] = None; from lorascope.cli import main; main()"
    command = [sys.executable, "-c", script, "verify", str(adapter.parent / "a.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a.bin: not checked" in done.stdout
    assert "needs-torch" in done.stdout and "hint: pip install torch" in done.stdout
    done = subprocess.run([*command[:-1], str(adapter.parent)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "2 adapters: 1 ok, 0 with warnings, 0 with errors, 1 not checked"


def test_verify_and_bake_against_a_base(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = {"model.q.weight": np.zeros((6, 4), np.float32), "model.v.weight": np.zeros((6, 4), np.float32)}
    safetensors.numpy.save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    assert run("verify", adapter, "--base", base).returncode == 0
    done = run("bake", base, adapter, "-o", tmp_path / "out", "--weight", "0.5", "--json")
    (report,) = objects(done.stdout)
    assert done.returncode == 0 and (report["sites"], report["tensors"]) == (2, 2)
    baked = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    expected = 0.5 * formats.read(adapter)["model.q"].delta_weight(np.float64)
    np.testing.assert_allclose(baked["model.q.weight"], expected, rtol=float(np.finfo(np.float32).eps))
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    safetensors.numpy.save_file({"model.q.weight": np.zeros((6, 4), np.float32)}, base / "model.safetensors")
    done = run("verify", adapter, "--base", base)
    assert done.returncode == 1 and "base-missing" in done.stdout
    done = run("bake", base, adapter, "-o", tmp_path / "other")
    assert done.returncode == 2 and "no such layer" in done.stderr and not (tmp_path / "other").exists()


def test_what_needs_the_base_is_made_plain_as_the_hint_says(adapter: Path, tmp_path: Path) -> None:
    base, gates = tmp_path / "BASE", tmp_path / "ADAPTER"
    base.mkdir()
    gates.mkdir()
    weight = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    safetensors.numpy.save_file({"model.q.weight": weight}, base / "model.safetensors")
    gate = {"base_model.model.model.q.ia3_l": np.full((6, 1), 1.5, np.float32)}
    safetensors.numpy.save_file(gate, gates / "adapter_model.safetensors", {"format": "pt"})
    (gates / "adapter_config.json").write_text('{"peft_type": "IA3", "feedforward_modules": []}')
    refused = run("merge", gates, gates, "-o", tmp_path / "merged")
    assert refused.returncode == 2
    commands = re.findall(r"`lorascope ([^`]+)`", refused.stderr)
    assert [command.split()[0] for command in commands] == ["bake", "extract"]
    for command in commands:
        done = run(*(tmp_path / word if word.isupper() else word for word in command.split()))
        assert done.returncode == 0, done.stderr
    expected = formats.read(gates)["model.q"].delta_weight(np.float64, base=weight)
    found = formats.read(tmp_path / "LORA")["model.q"].delta_weight(np.float64)
    assert np.linalg.norm(found - expected) <= 0.011 * np.linalg.norm(expected)
    assert run("merge", tmp_path / "LORA", tmp_path / "LORA", "-o", tmp_path / "merged").returncode == 0


def test_formats_lists_both_registries() -> None:
    (value,) = objects(run("formats", "--json").stdout)
    names = {one["name"]: one for one in value["formats"]}
    assert names["peft"]["reads"] and "lora" in names["peft"]["writes"]
    assert {"lora", "dora", "loha"} <= {one["name"] for one in value["kinds"]}
    assert "peft" in run("formats").stdout and "(w1_a w1_b)" in run("formats", "--kinds").stdout.replace("\n", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_verb_that_is_asked_to_stop_leaves_nothing_half_done(name: str, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = {f"model.{site}.weight": np.zeros((6, 4), np.float32) for site in "qv"}
    safetensors.numpy.save_file(tensors, base / "model.safetensors")
    script = f"""
import os, signal, sys, time
for name in (signal.SIGTERM, signal.SIGHUP):  # whatever runs the tests may ignore them, as nohup does
    signal.signal(name, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from lorascope import cli
import lorascope.conversion.bake
def slow(*arguments, **options):
    assert any(path.endswith(".tmp") for path in os.listdir({str(tmp_path)!r}))
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)
sys.modules["lorascope.conversion.bake"].write_streamed = slow
sys.argv = ["lorascope", "bake", {str(base)!r}, {str(adapter)!r}, "-o", {str(tmp_path / "out")!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "base"}


def test_a_signal_that_is_to_be_ignored_stays_ignored() -> None:
    script = """
import os, signal
from lorascope.cli.interruption import stop_in_order
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
stop_in_order()
os.kill(os.getpid(), signal.SIGHUP)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_bake_says_what_it_left_out_and_takes_an_answer(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    safetensors.numpy.save_file({"c_proj.weight": np.zeros((2, 2), np.float32)}, base / "model.safetensors")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    update = LowRank(np.array([[1.0], [2.0]], np.float32), np.array([[1.0, 10.0]], np.float32))
    formats.write(Adapter({"c_proj": update}), tmp_path / "square")
    arguments = ("bake", base, tmp_path / "square", "-o", tmp_path / "out", "--json")
    done = run(*arguments)
    assert done.returncode == 2 and "--layout" in objects(done.stdout)[0]["hint"]
    done = run(*arguments, "--layout", "sideways")
    assert done.returncode == 2 and objects(done.stdout)[0]["expected"] == "out-in or in-out"
    done = run(*arguments, "--layout", "in-out")
    assert done.returncode == 0 and "pytorch_model.bin" in objects(done.stdout)[0]["notes"][0]
    baked = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert baked["c_proj.weight"].tolist() == [[1, 2], [10, 20]]


def test_convert_to_gguf_asks_for_the_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 2), (2, 6)))
    names = ("q_proj", "k_proj", "v_proj")
    sites = {f"model.layers.0.self_attn.{name}": LowRank(B, A, 2.0 if name != "v_proj" else 0.3) for name in names}
    formats.write(Adapter(sites), tmp_path / "a")
    target = tmp_path / "a.gguf"
    done = run("convert", tmp_path / "a", target, "--to", "gguf")
    assert done.returncode == 2 and "--base" in done.stderr and "--architecture" in done.stderr
    done = run("convert", tmp_path / "a", target, "--to", "gguf", "--architecture", "llama")
    assert done.returncode == 2 and "--kv-heads" in done.stderr
    done = run("convert", tmp_path / "a", target, "--to", "gguf", "--base", tmp_path / "missing")
    assert done.returncode == 2 and "missing" in done.stderr and "Traceback" not in done.stderr

    options = ("--architecture", "llama", "--heads", 4, "--kv-heads", 2)
    done = run("convert", tmp_path / "a", target, "--to", "gguf", *options)
    assert done.returncode == 0, done.stderr
    assert "the scale of 1 site was multiplied into a factor: model.layers.0.self_attn.v_proj" in done.stdout
    (tmp_path / "base").mkdir()
    config = {"model_type": "mistral", "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    for base in (tmp_path / "base", tmp_path / "base" / "config.json"):
        done = run(
            "convert", tmp_path / "a", tmp_path / "b.gguf", "--to", "gguf", "--base", base, "--json", "--overwrite"
        )
        assert objects(done.stdout)[0]["folded"] == ["model.layers.0.self_attn.v_proj"], done.stderr
        assert (tmp_path / "b.gguf").read_bytes() == target.read_bytes()


def test_a_mistyped_path_is_first_of_all_no_path(tmp_path: Path) -> None:
    unreachable = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    for offline in ("0", "1"):
        environment = unreachable | {"HF_HUB_OFFLINE": offline}
        for verb in ("inspect", "verify"):
            command = [sys.executable, "-m", "lorascope", verb, "nothere/foo"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
            said = done.stdout + done.stderr
            assert done.returncode == 2 and "is the path mistyped?" in said, said
            assert said.index("no such local path") < said.index("the hub cannot be reached")


def test_convert_calls_dropped_only_what_is_gone(adapter: Path, tmp_path: Path) -> None:
    config = adapter / "adapter_config.json"
    fields = json.loads(config.read_text()) | {"base_model_name_or_path": "owner/base", "lora_dropout": 0.1}
    config.write_text(json.dumps(fields))
    text = run("convert", adapter, tmp_path / "a.safetensors", "--to", "kohya").stdout
    (line,) = [line for line in text.splitlines() if line.startswith("dropped: configuration")]
    assert "lora_dropout" in line
    assert not any(name in line for name in ("lora_alpha", "rank_pattern", "base_model_name_or_path"))
    (report,) = objects(run("convert", adapter, tmp_path / "b.safetensors", "--to", "kohya", "--json").stdout)
    replaced = [one["why"] for one in report["dropped"] if one["is_replaced"]]
    assert len(replaced) == 1 and "lora_alpha" in replaced[0]
