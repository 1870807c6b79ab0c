"""Read and summarise a folder of 2,000 small adapters, against mapping the same files and summing their bytes."""

import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from lorascope.formats import find, read
from lorascope.report import summarise
from report import report

COUNT = 2_000
RUNS = 3


def generated(folder: Path) -> None:
    """One half PEFT folders, one half kohya files: 8 sites, rank 8, 128 × 128, float16."""
    rng = np.random.default_rng(0)
    config = '{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "owner/base"}'
    A, B = (rng.standard_normal(shape).astype(np.float16) for shape in ((8, 128), (128, 8)))
    for index in range(COUNT):
        if index % 2:
            place = folder / f"peft-{index}"
            place.mkdir()
            (place / "adapter_config.json").write_text(config)
            site = "base_model.model.model.layers.{}.self_attn.q_proj"
            tensors = {f"{site.format(i)}.lora_A.weight": A for i in range(8)}
            tensors |= {f"{site.format(i)}.lora_B.weight": B for i in range(8)}
            safetensors.numpy.save_file(tensors, place / "adapter_model.safetensors", {"format": "pt"})
        else:
            site = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn1_to_q"
            tensors = {f"{site.format(i)}.lora_down.weight": A for i in range(8)}
            tensors |= {f"{site.format(i)}.lora_up.weight": B for i in range(8)}
            tensors |= {f"{site.format(i)}.alpha": np.array(4.0, np.float16) for i in range(8)}
            safetensors.numpy.save_file(tensors, folder / f"kohya-{index}.safetensors")


def summed(files: list[Path]) -> int:
    """What any reader must do at least: map every file and touch every byte."""
    return sum(int(np.memmap(file, np.uint8, "r").sum()) for file in files)


def figures() -> dict[str, float]:
    """Files a second, and how many times longer than mapping and summing; both timed in turns."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generated(folder)
        files = sorted(folder.rglob("*.safetensors"))
        inspecting, summing = [], []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            summed(files)
            middle = time.perf_counter()
            found = find(folder)
            for path in found:
                summarise(read(path))
            summing.append(middle - start)
            inspecting.append(time.perf_counter() - middle)
            assert len(found) == COUNT
    inspect, floor = (sorted(times[1:])[RUNS // 2] for times in (inspecting, summing))
    return {
        "files": COUNT,
        "inspect_seconds": inspect,
        "map_and_sum_seconds": floor,
        "inspect_files_per_second": COUNT / inspect,
        "inspect_over_map_and_sum": inspect / floor,
    }


if __name__ == "__main__":
    report("inspect_files", figures)
