"""What ``predict.py`` measures in a process of its own, which has only judged: rates, and the peak of its memory.

    python _predict_alone.py ZOO PREDICTOR PREDICTOR_OF_LARGE [--torch] LARGE…

Rates of the zoo's adapters from memory and of the large files one by one: by the clock on the wall, and per second of
processor time, which is the same where no other process wants the core. A fitted ``kernels`` needs no PyTorch; with
``--torch`` it is imported before anything else, as in a program that uses it for something else. The peak is that of
the resident set since the process began to run this program: ``VmHWM`` where ``/proc`` has it; elsewhere ``ru_maxrss``,
which on some systems is never less than that of the parent.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from report import median_seconds


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_memory(adapters):
    """The adapters without their files."""
    from lorascope.adapter import Adapter, LowRank

    return [
        Adapter({name: LowRank(np.array(u.B), np.array(u.A), u.scale, alpha=u.alpha) for name, u in adapter.items()})
        for adapter in adapters
    ]


def measure(zoo: str, small: str, large: str, paths: list[str]) -> dict[str, float]:
    """Adapters per second, and bytes."""
    import lorascope
    from lorascope.predict import Dataset, Predictor

    predictor = Predictor.load(large)
    result = rates("large_from_files", len(paths), lambda: [predictor.predict([lorascope.read(p)]) for p in paths])
    result["large_peak_bytes"] = peak_bytes()
    of_small = Predictor.load(small)
    adapters = in_memory(sample.read() for sample in Dataset.of(zoo).samples)
    return result | rates("small", len(adapters), lambda: of_small.predict(adapters))


def rates(name: str, count: int, work: Callable[[], Any]) -> dict[str, float]:
    """Adapters per second, by both clocks."""
    return {
        f"{name}_per_second": count / median_seconds(work),
        f"{name}_per_processor_second": count / median_seconds(work, clock=time.process_time),
    }


if __name__ == "__main__":
    zoo, small, large, *paths = (argument for argument in sys.argv[1:] if argument != "--torch")
    if "--torch" in sys.argv:
        import torch

        torch.set_num_threads(1)
    found = measure(zoo, small, large, paths)
    assert ("torch" in sys.modules) == ("--torch" in sys.argv)
    print(json.dumps(found))
