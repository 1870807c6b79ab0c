"""How the benchmarks time and print: medians of several runs, one JSON object."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def median_seconds(work: Callable[[], Any], *, runs: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of ``runs`` calls after one that warms up; ``time.process_time`` leaves out other processes."""
    work()
    times = []
    for _ in range(runs):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def report(name: str, figures: Callable[[], dict[str, float]]) -> None:
    """Run a benchmark as a script: text, or one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    print_report(name, figures(), is_json=arguments.json)


def print_report(name: str, figures: dict[str, float], *, is_json: bool) -> None:
    """Figures to four digits: text, or one JSON object."""
    result = {key: float(f"{value:.4g}") for key, value in figures.items()}
    if is_json:
        print(json.dumps({"benchmark": name, **result}))
        return
    print(name)
    for key, value in result.items():
        print(f"  {key:50s} {value:g}")
