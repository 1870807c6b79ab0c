"""Rank 64 → 16 at sites of 4096 × 4096, one thread: QR of the factors against a dense SVD and PEFT's "svd" merge.

The dense ways form ΔW: ``torch.linalg.svd`` of it in full, as kohya-ss/sd-scripts resizes, and PEFT's
``add_weighted_adapter(combination_type="svd")`` with one adapter. Each runs in a process of its own, whose memory above
the idle one is stated; one dense site is timed, the fast way over as many sites as fit.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from report import print_report

RANK, KEPT = 64, 16


def factors(side):
    """B [side, 64] and A [64, side] in float32 with singular values that fall as those of trained adapters do."""
    import numpy as np

    rng = np.random.default_rng(0)
    B = rng.standard_normal((side, RANK), dtype=np.float32) * np.exp(-np.arange(RANK, dtype=np.float32) / 12)
    return B, rng.standard_normal((RANK, side), dtype=np.float32) / np.float32(side**0.5)


def by_factors(side, sites):
    """``lorascope.compress.resize`` of an adapter of many sites; the last site's relative error."""
    import numpy as np

    from lorascope.adapter import Adapter, LowRank
    from lorascope.compress import resize
    from lorascope.symmetry.truncation import Cut

    B, A = factors(side)
    adapter = Adapter({f"s{number}": LowRank(B, A) for number in range(sites)})
    start = time.perf_counter()
    small = resize(adapter, Cut(rank=KEPT))
    seconds = (time.perf_counter() - start) / sites
    return seconds, small.adapter["s0"].B.astype(np.float32), small.adapter["s0"].A.astype(np.float32)


def by_dense_svd(side, sites):
    """ΔW in full, all of its singular values, the leading ones."""
    import torch

    torch.set_num_threads(1)
    B, A = map(torch.from_numpy, factors(side))
    start = time.perf_counter()
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    made = U[:, :KEPT] * S[:KEPT], Vh[:KEPT]
    return time.perf_counter() - start, made[0].numpy(), made[1].numpy()


def by_peft(side, sites):
    """PEFT's merge to a lower rank with an adapter of zeros: of one alone it copies the factors and cuts nothing."""
    import peft
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(side, side, bias=False))
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    wrapped = peft.get_peft_model(model, config)
    wrapped.add_adapter("zeros", config)  # PEFT starts B at zero
    layer = wrapped.base_model.model[0]
    B, A = map(torch.from_numpy, factors(side))
    layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data = B, A
    start = time.perf_counter()
    wrapped.add_weighted_adapter(["default", "zeros"], [1.0, 1.0], "small", combination_type="svd", svd_rank=KEPT)
    seconds = time.perf_counter() - start
    small = [layer.lora_B["small"].weight.detach(), layer.lora_A["small"].weight.detach()]
    return seconds, small[0].numpy() * layer.scaling["small"], small[1].numpy()


WAYS = {"factors": by_factors, "dense_svd": by_dense_svd, "peft_svd": by_peft}


def measured(way, side, sites):
    """In this process: seconds a site, relative error, and megabytes above what the imports and inputs take."""
    import resource

    import numpy as np
    import peft  # noqa: F401  (so that the idle process is the same for all)
    import torch  # noqa: F401  (as peft)

    from lorascope.symmetry.cores import distance, norm

    B, A = factors(side)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, made_B, made_A = WAYS[way](side, sites)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pair = B.astype(np.float64), A.astype(np.float64)
    error = float(distance(*pair, made_B.astype(np.float64), made_A.astype(np.float64)) / norm(*pair))
    return {"seconds": seconds, "error": error, "megabytes": (peak - idle) / 1024}


def figures(side, sites):
    """All ways, and the ratios to the fast one."""
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--side", str(side), "--sites", str(sites)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
        found[way] = json.loads(result.stdout.splitlines()[-1])
    fast = found["factors"]
    figures = {"side": side, "sites_by_factors": sites}
    for way, own in found.items():
        figures |= {f"{way}_seconds_a_site": own["seconds"], f"{way}_relative_error": own["error"]}
        figures[f"{way}_megabytes"] = own["megabytes"]
        if way != "factors":
            figures[f"{way}_over_factors"] = own["seconds"] / fast["seconds"]
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--way", choices=WAYS, help="run this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments.way, arguments.side, arguments.sites)))
    else:
        print_report("resize", figures(arguments.side, arguments.sites), is_json=arguments.json)
