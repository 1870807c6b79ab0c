"""Whole-process seconds of ``lorascope inspect`` and of other tools that describe an adapter, on two PEFT folders.

Each tool is installed in an environment of its own; one that does not install or run is left out with a message.
What they compute differs: lorascope gives the singular values of every site, in float64.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import numpy as np
import safetensors.numpy

from report import median_seconds

ROOT = Path(__file__).parents[1]
INSTALL_SECONDS = 300
RIVALS = {
    "adaptersentry": ("adaptersentry==2.0.2", ("safetensors", "numpy", "scipy", "scikit-learn", "pydantic", "rich")),
    "sft-cli": ("sft-cli==0.2.2", ("ml-dtypes", "numpy", "safetensors", "textual", "typer")),
    "sft-cli svd": ("sft-cli==0.2.2", ("ml-dtypes", "numpy", "safetensors", "textual", "typer")),
    "gradience": ("gradience==0.11.0", ("pyyaml", "numpy", "packaging", "rich", "scipy", "safetensors")),
}
"""Tool → what is installed, and what of its dependencies; PyTorch is that of the environment of this script."""

COMMANDS = {
    "adaptersentry": ["adaptersentry", "scan", "{file}"],
    "sft-cli": ["sft", "lora", "info", "{file}"],
    "sft-cli svd": ["sft", "lora", "svd", "{file}"],
    "gradience": ["gradience", "audit", "--peft-dir", "{folder}"],
}
"""Tool → its program and arguments; ``{folder}`` and ``{file}`` are filled in."""

VERDICTS = {"adaptersentry": (0, 1, 2, 3)}
"""Tool → exit codes that are a finding and no failure."""


def adapter(folder: Path, *, layers: int, width: int, wide: int, rank: int) -> Path:
    """A PEFT adapter of random float16 on seven modules a layer of a Llama-like model."""
    rng = np.random.default_rng(0)
    modules = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    modules |= {"mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide)}
    tensors = {}
    for layer in range(layers):
        for module, (out, in_) in modules.items():
            site = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{site}.lora_A.weight"] = rng.standard_normal((rank, in_), np.float32).astype(np.float16)
            tensors[f"{site}.lora_B.weight"] = rng.standard_normal((out, rank), np.float32).astype(np.float16)
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": "owner/base"}
    config |= {"target_modules": [name.rpartition(".")[2] for name in modules], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def installed(place: Path, requirement: str, more: tuple[str, ...]) -> Path | str:
    """The folder of programs of a new environment, or why there is none."""
    venv.create(place, with_pip=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    try:
        for packages in (["--no-deps", requirement], [*constraints, *more]):
            subprocess.run([*pip, *packages], check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return "installing took more than five minutes"
    except subprocess.CalledProcessError as error:
        return ((error.stderr or "").strip().splitlines() or ["pip failed"])[-1][:200]
    own = next((place / "lib").glob("python*/site-packages"))
    (own / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")  # looked at last, and only for PyTorch
    return place / "bin"


def run(line: list[str], verdicts: tuple[int, ...]) -> None:
    """Run a tool to its end; it must print something and end with one of these codes."""
    done = subprocess.run(line, check=False, capture_output=True, timeout=300)
    if done.returncode not in verdicts or not done.stdout:
        raise subprocess.CalledProcessError(done.returncode, line, done.stdout, done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    seconds: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {
            "small": adapter(Path(place) / "small", layers=1, width=64, wide=128, rank=4),
            "7B": adapter(Path(place) / "large", layers=32, width=4096, wide=11008, rank=16),
        }
        commands = {"lorascope": [str(Path(sys.executable).parent / "lorascope"), "inspect", "{folder}"]}
        for tool, (requirement, more) in RIVALS.items():
            programs = installed(Path(place) / tool, requirement, more)
            if isinstance(programs, str):
                skipped[tool] = programs
            else:
                name, *rest = COMMANDS[tool]
                commands[tool] = [str(programs / name), *rest]
        for tool, command in commands.items():
            for size, folder in folders.items():
                fields = {"folder": str(folder), "file": str(folder / "adapter_model.safetensors")}
                line = [word.format(**fields) for word in command]
                try:
                    seconds.setdefault(tool, {})[size] = median_seconds(
                        lambda line=line, tool=tool: run(line, VERDICTS.get(tool, (0,))), runs=5
                    )
                except (subprocess.SubprocessError, OSError) as error:
                    said = getattr(error, "stderr", None) or str(error).encode()
                    skipped[f"{tool}, {size}"] = said.decode("utf-8", "replace").strip()[-200:]
    result = {tool: {size: float(f"{value:.4g}") for size, value in row.items()} for tool, row in seconds.items()}
    if arguments.json:
        print(json.dumps({"benchmark": "inspect_rivals", "seconds": result, "skipped": skipped}))
        return
    for tool, row in result.items():
        print(f"{tool:16s}" + "".join(f"  {size} {value:.3f} s" for size, value in row.items()))
    for tool, why in skipped.items():
        print(f"{tool:16s}  left out: {why}")


if __name__ == "__main__":
    main()
