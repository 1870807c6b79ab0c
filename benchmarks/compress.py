"""Size against relative error of packs of a zoo: 200 adapters of digits-vit, rank 4, factors in float32.

The zoo is the first 200 rows of ``--zoo``, or is forged (some seconds) where none is given.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from lorascope.compress import compress
from lorascope.zoo import Zoo
from report import print_report

COUNT = 200
SETTINGS = (
    {"method": "alone"},
    {"method": "alone", "bits": 8},
    {"method": "alone", "bits": 4},
    {"method": "alone", "rank": 2},
    {"method": "alone", "rank": 2, "bits": 4},
    {"method": "alone", "rank": 1, "bits": 4},
    {"method": "eigen", "rank": 16},
    {"method": "joint", "rank": 16},
    {"method": "joint", "rank": 32},
    {"method": "joint", "rank": 64},
    {"method": "joint", "rank": 32, "bits": 8},
    {"method": "joint", "rank": 32, "bits": 4},
    {"method": "joint", "rank": 16, "clusters": 4},
    {"method": "joint", "rank": 16, "clusters": 4, "bits": 4},
)


def figures(zoo):
    """Bytes as a share of those stored, mean and worst relative error, for each of the settings."""
    rows = zoo.rows()[:COUNT]
    adapters, names = [zoo.read(row) for row in rows], [str(row["id"]) for row in rows]
    found = {"adapters": len(rows)}
    for options in SETTINGS:
        result = compress(adapters, names, **options)
        title = "_".join(str(value) if name == "method" else f"{name}{value}" for name, value in options.items())
        found[f"{title}_share"] = result.nbytes / result.nbytes_before
        found[f"{title}_mean"], found[f"{title}_worst"] = result.mean_error, result.worst[1]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--zoo", type=Path, help="a zoo of digits-vit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.zoo
        if path is None:
            path = Path(folder) / "zoo"
            command = [sys.executable, "-m", "lorascope", "forge", "digits-vit", "--count", str(COUNT), "--out", path]
            command += ["--set", "base_steps=100", "--set", "steps=100", "--workers", "1"]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        print_report("compress", figures(Zoo.open(path)), is_json=arguments.json)
