"""The long run of the mutation fuzzer: 200,000 mutants over two processes, resumable.

    python experiments/fuzzing/run.py                       # results.json
    python experiments/fuzzing/run.py --count 20000 --out /tmp/results.json

Finished pieces are kept in ``<out>.parts.jsonl`` until the run is whole; started again, it goes on after them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# two processes on two processors: threads of the linear algebra that wait for one another would count as work
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import torch

import lorascope
from fuzz.harness import Tally, results_of, shown

PIECE = 2_000


def judged(seed: int, begin: int, end: int) -> dict[str, Any]:
    """The tally of one piece, as JSON."""
    tally, start = Tally(seed), time.monotonic()
    for result in results_of(seed, range(begin, end)):
        tally.add(result)
    return {
        "seed": seed,
        "begin": begin,
        "end": end,
        "count": tally.count,
        "seconds": time.monotonic() - start,
        "outcomes": [[*key, count] for key, count in sorted(tally.outcomes.items())],
        "messages": sorted({shown(text) for text in tally.messages}),
        "failures": tally.replays(),
        "max_seconds": tally.max_seconds,
        "max_memory_mib": tally.max_memory >> 20,
    }


def whole(parts: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The pieces added up: what ``results.json`` holds."""
    outcomes: Counter[tuple[str, str, str]] = Counter()
    for part in parts:
        for format, mutation, outcome, count in part["outcomes"]:
            outcomes[format, mutation, outcome] += count
    totals: Counter[str] = Counter()
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (format, mutation, outcome), count in sorted(outcomes.items()):
        totals[outcome] += count
        table.setdefault(format, {}).setdefault(mutation, {})[outcome] = count
    return {
        "lorascope": lorascope.__version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "torch": torch.__version__,
        "seed": seed,
        "mutants": sum(part["count"] for part in parts),
        "outcomes": dict(sorted(totals.items())),
        "failures": [line for part in parts for line in part["failures"]],
        "different_messages": len({text for part in parts for text in part["messages"]}),
        "max_seconds": round(max(part["max_seconds"] for part in parts), 3),
        "max_memory_mib": max(part["max_memory_mib"] for part in parts),
        "process_seconds": round(sum(part["seconds"] for part in parts)),
        "by_format_and_mutation": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args()
    kept = arguments.out.with_suffix(".parts.jsonl")
    parts: list[dict[str, Any]] = []
    if kept.exists():
        parts = [part for line in kept.read_text().splitlines() if (part := json.loads(line))["seed"] == arguments.seed]
    done = {(part["begin"], part["end"]) for part in parts}
    pieces = [(begin, min(begin + PIECE, arguments.count)) for begin in range(0, arguments.count, PIECE)]
    parts = [part for part in parts if (part["begin"], part["end"]) in pieces]
    with ThreadPoolExecutor(arguments.processes) as pool, kept.open("a") as stream:
        waiting = [pool.submit(judged, arguments.seed, *piece) for piece in pieces if piece not in done]
        for future in as_completed(waiting):
            part = future.result()
            parts.append(part)
            stream.write(json.dumps(part) + "\n")
            stream.flush()
            print(f"{len(parts)} of {len(pieces)} pieces, {sum(len(part['failures']) for part in parts)} failures")
    parts.sort(key=lambda part: part["begin"])
    result = whole(parts, arguments.seed)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    kept.unlink()
    print(f"{result['mutants']} mutants: {result['outcomes']}")
    for line in result["failures"]:
        print(line)
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
