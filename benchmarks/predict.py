"""Adapters judged per second and core by the default model, small ones from memory and 7B-size ones from warm files.

The small ones are forged here. The large ones have 64 sites of 4096 × 4096 and rank 16 in float16, 16 MiB each; their
factors are those of forged adapters of rank 16, whose R of B = Q R is kept and whose Q is drawn anew at the large size:
spectra and conditions are those of training. Rates, and the peak of memory with the large files, are those of
processes of their own (``_predict_alone``), one without PyTorch and one that has imported it. Beside the model as it
is, the same fitted model in a loop over adapters and sites, by one SVD each.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import lorascope
from _predict_alone import in_memory
from lorascope.adapter import Adapter, LowRank
from lorascope.features.projection import projections
from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset, Sample, fit_predictor
from lorascope.symmetry import thin_svd
from report import median_seconds, report

SMALL, LARGE, SIDE, SITES = 192, 24, 4096, 64
ALONE = Path(__file__).with_name("_predict_alone.py")


def naive(predictor, adapters):
    """Scores by one SVD, one feature vector and one inner product at a time; spectra in one call at the end."""
    [member], model = predictor.members, predictor.model
    machine, principal, scores = member.fitted.machine, member.fitted.principal, []
    sites = machine.comparison.sites
    for adapter in adapters:
        kept = {}
        for name, (stack, place) in zip(sites.names, sites.places, strict=True):
            B, A, scale = adapter[name].factors(np.float64)
            U, S, Vh = thin_svd(B, A, scale)
            left, right = (
                X if model.rows(len(X)) == len(X) else projections([name], side, model.rows(len(X)), len(X))[0] @ X
                for side, X in (("out", U), ("in", Vh.T))
            )
            for part, values in zip(("left", "S", "right"), (left, S, right), strict=True):
                kept.setdefault(f"{part}{stack}", []).append((place, values))
        inputs = {key: np.stack([[v for _, v in sorted(rows, key=lambda r: r[0])]]) for key, rows in kept.items()}
        inputs, total = principal(inputs), machine.intercept.copy()
        for (kernel, site), slope in machine.slopes.items():
            total = total + machine.comparison.kernels[kernel](sites.tokens(inputs, site))[0] @ slope
        radial = replace(machine, slopes={}, intercept=np.zeros_like(machine.intercept))
        scores.append(total + radial(inputs)[0])
    return np.asarray(scores)


def lifted(adapter, rng):
    """A 7B-size adapter with the R of a forged one's factors, at sites in turn."""
    roots = []
    for update in adapter.values():
        B, A, scale = update.factors(np.float64)
        roots.append((np.linalg.qr(B).R * scale, np.linalg.qr(A.T).R))
    sites = {}
    for number in range(SITES):
        left, right = roots[number % len(roots)]
        U, V = (rng.standard_normal((SIDE, len(left))) / np.sqrt(SIDE) for _ in range(2))
        sites[f"layers.{number}.q"] = LowRank((U @ left).astype(np.float16), (right.T @ V.T).astype(np.float16))
    return Adapter(sites)


def figures() -> dict[str, float]:
    """Adapters per second, the ratio to the loop, the difference of scores, bytes."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = {"base_steps": 200, "steps": 60}
        forge("digits-vit", SMALL, place / "small", settings=settings)
        dataset = Dataset.of(place / "small")
        small = fit_predictor(dataset, "test_accuracy", MODELS["kernels"]())
        small.save(place / "small predictor")

        forge("digits-vit", LARGE, place / "wide", settings={**settings, "rank": 16})
        rng = np.random.default_rng(0)
        wide = Dataset.of(place / "wide")
        paths = [place / f"large-{number}" for number in range(LARGE)]
        for path, sample in zip(paths, wide.samples, strict=True):
            lorascope.write(lifted(sample.read(), rng), path)
        samples = tuple(Sample(lambda path=path: lorascope.read(path), {}) for path in paths)
        zoo = replace(wide, samples=samples, splits=("train",) * LARGE, groups=wide.ids, _inputs={})
        large = fit_predictor(zoo, "test_accuracy", MODELS["kernels"]())
        large.save(place / "large predictor")

        given = [place / "small", place / "small predictor", place / "large predictor", *paths[:8]]
        for flags, beside in (([], ""), (["--torch"], "_beside_torch")):
            command = [sys.executable, str(ALONE), *map(str, given), *flags]
            done = subprocess.run(command, check=True, capture_output=True)
            result |= {name + beside: value for name, value in json.loads(done.stdout).items()}

        some = in_memory(sample.read() for sample in dataset.samples[:24])
        by_loop = median_seconds(lambda: naive(small, some), runs=3, clock=time.process_time)
        result["small_ratio_to_loop"] = by_loop / len(some) * result["small_per_processor_second"]
        inputs = small.model.inputs([Sample(lambda a=a: a, {}) for a in some], small.structure)
        scores = small.members[0].fitted.scores(inputs)
        result["small_difference_of_scores"] = float(np.abs(naive(small, some)[:, :1] - scores).max())
        by_loop = median_seconds(lambda: naive(large, [lorascope.read(paths[0])]), runs=1, clock=time.process_time)
        result["large_ratio_to_loop"] = by_loop * result["large_from_files_per_processor_second"]
    return result


if __name__ == "__main__":
    report("predict", figures)
