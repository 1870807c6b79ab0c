"""The 10 nearest of 100,000 sketches: exact in NumPy, by faiss where it is installed, and by reading every adapter."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.formats import read, write
from lorascope.retrieve import Vectors, measured, sketch_of
from report import median_seconds, report

COUNT, K, QUERIES, FILES = 100_000, 10, 20, 50


def planted(rng: np.random.Generator) -> Adapter:
    """18 sites of 64 × 64, rank 4."""
    return Adapter(
        {
            f"layers.{s}": LowRank(
                rng.standard_normal((64, 4)).astype(np.float32), rng.standard_normal((4, 64)).astype(np.float32)
            )
            for s in range(18)
        }
    )


def figures() -> dict[str, float]:
    """Seconds for one search and ratios; sketches are those of families of 100, as adapters of one task are."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((COUNT // 100, 256))
    sketches = (np.repeat(centres, 100, axis=0) + 0.5 * rng.standard_normal((COUNT, 256))).astype(np.float32)
    queries = sketches[rng.integers(0, COUNT, QUERIES)] + 0.3 * rng.standard_normal((QUERIES, 256)).astype(np.float32)
    exact = Vectors.exact(sketches)
    truth = [set(exact.nearest(query, K).tolist()) for query in queries]
    exact_seconds = median_seconds(lambda: exact.nearest(queries[0], K))
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"a{k}" for k in range(FILES)]
        for place in places:
            write(planted(rng), place)
        own = planted(rng)
        read_seconds = median_seconds(lambda: [measured(own, read(place)) for place in places], runs=3) / FILES
        sketch_seconds = median_seconds(lambda: [sketch_of(read(place)) for place in places], runs=3) / FILES
    result = {
        "exact_seconds": exact_seconds,
        "reading_all_over_exact_from_50_files": read_seconds * COUNT / exact_seconds,
        "milliseconds_to_read_and_compare_one": 1e3 * read_seconds,
        "milliseconds_to_index_one": 1e3 * sketch_seconds,
        "sketches_mb": sketches.nbytes / 1e6,
    }
    if importlib.util.find_spec("faiss") is None:
        return result
    start = time.perf_counter()
    compressed = Vectors.compressed(sketches)
    result["faiss_build_seconds"] = time.perf_counter() - start
    result["exact_over_faiss"] = exact_seconds / median_seconds(lambda: compressed.nearest(queries[0], K))
    hits = [len(truth[k] & set(compressed.nearest(query, K).tolist())) for k, query in enumerate(queries)]
    result["faiss_recall_at_10"] = float(np.mean(hits)) / K
    return result


if __name__ == "__main__":
    report("find", figures)
