"""Faults while 200 adapters are forged: 30 kills, a full disk, a read-only zoo, two runs at once, one that diverges.

    python experiments/forge_faults/run.py           # about 10 minutes on 2 busy cores
    python experiments/forge_faults/run.py --small   # 40 adapters, 5 kills; about 2 minutes

Each faulty zoo is compared with that of an uninterrupted run, file by file. The full disk and the read-only zoo are
file systems in memory, which only the superuser may mount: without that right they are recorded as not run. Zoos go to
a temporary folder; the result to results.json beside this file, with --small to small-results.json.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lorascope import __version__
from lorascope.forge import forge
from lorascope.forge.recipes import RECIPES
from lorascope.zoo import Zoo, verify_zoo
from lorascope.zoo.log import machine, read_log
from lorascope.zoo.store import read_records

HERE = Path(__file__).parent
SETTINGS = {"base_steps": 60, "steps": 10}
LONGEST = 10  # seconds from the beginning of a run to its kill, at most
MEGABYTES = 3  # of the disk that becomes full


def state(zoo):
    """The hash of every file that a zoo consists of."""
    return {
        path.relative_to(zoo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in zoo.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "zoo.json", "log.jsonl")
    }


def lorascope(*arguments):
    """A command in a process group of its own."""
    code = "from lorascope.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_forge(zoo, count, workers=1):
    """The command that forges."""
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return lorascope("forge", "digits-vit", "--count", count, "--out", zoo, "--workers", workers, *settings)


def compared(zoo, reference, count):
    """What the end of a faulty zoo has to be, and whether it is."""
    ids = Counter(row["id"] for row in read_records(zoo))
    return {
        "adapters": len(ids),
        "each_once": len(ids) == count and set(ids.values()) == {1},
        "equal_bit_for_bit": state(zoo) == reference,
        "defects": len(verify_zoo(zoo).defects),
    }


def kills(folder, reference, count, times, seed=0):
    """kill -9 at random moments of a run, from its beginning on; a zoo that comes to its end is followed by another."""
    rng = random.Random(seed)
    records, zoos = [], []
    number = 0
    while len(records) < times:
        zoo = folder / f"kills-{number}"
        process = run_forge(zoo, count)
        began = len(read_log(zoo))
        while len(read_log(zoo)) == began and process.poll() is None:
            time.sleep(0.01)
        deadline = time.monotonic() + rng.uniform(0, LONGEST)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            recorded = len(read_records(zoo)) if (zoo / "zoo.json").exists() else 0
            records.append({"zoo": number, "recorded": recorded, "half_made": len(list(zoo.glob("**/.tmp-*")))})
        else:
            process.communicate()
            zoos.append({"exit": process.returncode, **compared(zoo, reference, count)})
            number += 1
    last = run_forge(folder / f"kills-{number}", count)
    last.communicate()
    zoos.append({"exit": last.returncode, **compared(folder / f"kills-{number}", reference, count)})
    return {"kills": times, "after_each": records, "zoos": zoos}


def two_at_once(folder, reference, count):
    """Two processes forge into one zoo."""
    runs = [run_forge(folder / "two", count) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    return {
        "exits": sorted(run.returncode for run in runs),
        "one_says_so": sum("another run is changing this zoo" in text for text in errors),
        **compared(folder / "two", reference, count),
    }


def full_disk(folder, reference, count):
    """A file system of a few megabytes that becomes full, is made larger, and at last read-only."""
    place = folder / "small-disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return {"not_run": "no right to mount a file system"}, {"not_run": "no right to mount a file system"}
    try:
        zoo = place / "zoo"
        first = run_forge(zoo, count)
        errors = first.communicate()[1]
        recorded = len(read_records(zoo))
        whole = not [one for one in verify_zoo(zoo).defects if one.problem not in ("extra", "manifest")]
        subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
        second = run_forge(zoo, count)
        second.communicate()
        full = {
            "exit_when_full": first.returncode,
            "traceback": "Traceback" in errors,
            "says": errors.strip().splitlines()[-1][-120:].replace(str(place), "…") if errors.strip() else "",
            "recorded_when_full": recorded,
            "whole_when_full": whole,
            "exit_after": second.returncode,
            **compared(zoo, reference, count),
        }
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        reads = {}
        for verb in (["zoo", "info"], ["zoo", "verify"], ["inspect"]):
            one = lorascope(*verb, zoo)
            one.communicate()
            reads[" ".join(verb)] = one.returncode
        writes = {}
        for name, one in (("forge", run_forge(zoo, count + 1)), ("zoo pack", lorascope("zoo", "pack", zoo))):
            text = one.communicate()[1]
            writes[name] = {"exit": one.returncode, "traceback": "Traceback" in text}
        return full, {"reads_exit": reads, "writes": writes, **compared(zoo, reference, count)}
    finally:
        subprocess.run(["umount", str(place)], check=True)


def diverged(folder, reference_zoo):
    """One adapter of the first cohort is given a learning rate of 1e30."""
    recipe = type(RECIPES["digits-vit"])
    drawn = recipe.draw
    try:
        recipe.draw = lambda self, seed, index, settings: (
            drawn(self, seed, index, settings) | ({"learning_rate": 1e30} if index == 3 else {})
        )
        forge("digits-vit", 32, folder / "diverged", settings=SETTINGS)
    finally:
        recipe.draw = drawn
    zoo, good = Zoo.open(folder / "diverged"), {row["id"]: row for row in Zoo.open(reference_zoo).rows()}
    rows = zoo.rows(only_usable=False)
    return {
        "status": dict(Counter(row["status"] for row in rows)),
        "place": [row["path"].split("/")[0] for row in rows if row["status"] == "diverged"],
        "others_equal_bit_for_bit": all(row == good[row["id"]] for row in zoo.rows()),
        "defects": len(verify_zoo(zoo.path).defects),
    }


def main():
    """Run everything and record it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    count, times = (40, 5) if small else (200, 30)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forge("digits-vit", count, folder / "reference", settings=SETTINGS)
        uninterrupted = time.monotonic() - began
        reference = state(folder / "reference")
        full, read_only = full_disk(folder, reference, count)
        result = {
            "version": __version__,
            "machine": machine(),
            "count": count,
            "settings": SETTINGS,
            "seconds_uninterrupted": round(uninterrupted, 1),
            "kills": kills(folder, reference, count, times),
            "two_at_once": two_at_once(folder, reference, count),
            "full_disk": full,
            "read_only": read_only,
            "diverged": diverged(folder, folder / "reference"),
        }
    result["seconds"] = round(time.monotonic() - began, 1)
    target = HERE / ("small-results.json" if small else "results.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    main()
