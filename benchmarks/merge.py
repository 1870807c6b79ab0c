"""Merging 8 adapters of rank 16 to rank 16 by their weighted sum: 16 sites of 2048 × 2048, one thread, float32.

Three ways to the same result: ``lorascope.merge`` in cores; PEFT's ``add_weighted_adapter(combination_type="svd")``
with its default of full matrices; and a dense SVD of PyTorch without them. The dense ways take two of the sites, since
all take the same time. Times are those of the processor, without what other processes take. Each way runs in a process
of its own, so that its peak memory is its own; errors are those of what comes out, against the exact sum in float64, as
multiples of the least that rank 16 allows.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from report import print_report

COUNT, RANK, SIDE, SITES, FEW = 8, 16, 2048, 16, 2
WAYS = ("cores", "peft", "dense")


def factors(site: int) -> list[tuple[Any, Any]]:
    """The factor pairs of all adapters at a site; their singular values fall, as those of trained adapters do."""
    random = np.random.default_rng(site)
    fall = (0.8 ** np.arange(RANK)).astype(np.float32)
    return [
        (
            random.standard_normal((SIDE, RANK), dtype=np.float32) * fall,
            random.standard_normal((RANK, SIDE), dtype=np.float32),
        )
        for _ in range(COUNT)
    ]


def peak() -> float:
    """MiB of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def error_of(site: int, B: Any, A: Any) -> float:
    """‖Σ ΔW_i − B A‖ over the least for rank 16, in float64."""
    exact = sum(b.astype(np.float64) @ a.astype(np.float64) for b, a in factors(site))
    sums = np.concatenate([b for b, _ in factors(site)], axis=1).astype(np.float64)
    rows = np.concatenate([a for _, a in factors(site)]).astype(np.float64)
    S = np.linalg.svd(np.linalg.qr(sums).R @ np.linalg.qr(rows.T).R.T, compute_uv=False)
    return float(np.linalg.norm(exact - B.astype(np.float64) @ A.astype(np.float64)) / np.linalg.norm(S[RANK:]))


def cores() -> dict[str, float]:
    from lorascope.adapter import Adapter, LowRank
    from lorascope.merge import merge
    from lorascope.symmetry.truncation import Cut

    made = [factors(site) for site in range(SITES)]
    adapters = [Adapter({f"s{site}": LowRank(*made[site][k]) for site in range(SITES)}) for k in range(COUNT)]
    before, start = peak(), time.process_time()
    done = merge(adapters, "linear", cut=Cut(rank=RANK))
    seconds, memory = time.process_time() - start, peak() - before
    update: Any = done.adapter["s0"]
    return {"seconds": seconds, "memory": memory, "error": error_of(0, update.B, update.A)}


def peft() -> dict[str, float]:
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [f"a{k}" for k in range(COUNT)]
    model = torch.nn.Sequential(*(torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(FEW)))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[str(site) for site in range(FEW)])
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    for site in range(FEW):
        for name, (B, A) in zip(names, factors(site), strict=True):
            layer = wrapped.base_model.model[site]
            layer.lora_A[name].weight.data = torch.from_numpy(A)
            layer.lora_B[name].weight.data = torch.from_numpy(B)
    before, start = peak(), time.process_time()
    wrapped.add_weighted_adapter(names, [1.0] * COUNT, "merged", combination_type="svd", svd_rank=RANK)
    seconds, memory = (time.process_time() - start) * SITES / FEW, peak() - before
    layer = wrapped.base_model.model[0]
    B, A = layer.lora_B["merged"].weight, layer.lora_A["merged"].weight
    return {"seconds": seconds, "memory": memory, "error": error_of(0, B.detach().numpy(), A.detach().numpy())}


def dense() -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    pairs = [[(torch.from_numpy(B), torch.from_numpy(A)) for B, A in factors(site)] for site in range(FEW)]
    before, start = peak(), time.process_time()
    found: Any = None
    for site in pairs:
        delta = torch.zeros(SIDE, SIDE)
        for B, A in site:
            delta.addmm_(B, A)
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        found = found or ((U[:, :RANK] * S[:RANK]).numpy(), Vh[:RANK].numpy())
    seconds, memory = (time.process_time() - start) * SITES / FEW, peak() - before
    return {"seconds": seconds, "memory": memory, "error": error_of(0, *found)}


def figures() -> dict[str, float]:
    """Of each way its seconds for all sites, its memory beside the adapters, and its error; and the ratios of time."""
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, "--way", way], capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    result = {f"{way}_{name}": value for way, own in found.items() for name, value in own.items()}
    for way in WAYS[1:]:
        result[f"{way}_seconds_over_cores"] = found[way]["seconds"] / found["cores"]["seconds"]
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--way", choices=WAYS, help="run one way alone")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps({"cores": cores, "peft": peft, "dense": dense}[arguments.way]()))
    else:
        print_report("merge", figures(), is_json=arguments.json)
