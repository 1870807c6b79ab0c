"""``plan``: what it foretells is what a run takes."""

import json
import subprocess
import sys

import pytest
import torch

from lorascope.forge import cohort, plan, planning

SETTINGS = {"base_steps": 2, "steps": 600, "cohort": 2}


class Clock:
    """Time that passes only where a test says so, and a millisecond whenever it is asked for."""

    now = 0.0

    def perf_counter(self):
        self.now += 1e-3
        return self.now


def test_what_is_before_the_steps_is_counted_once_for_a_cohort(monkeypatch):
    clock, gather = Clock(), cohort.gather

    def slow(*arguments):
        clock.now += 1.0
        return gather(*arguments)

    monkeypatch.setattr(cohort, "gather", slow)
    monkeypatch.setattr(planning, "time", clock)
    planned = plan("digits-vit", 4, settings=SETTINGS)
    per_step = planned["milliseconds_per_adapter_step"] * 2 / 1e3
    assert per_step == pytest.approx(1e-3)
    rest = planned["seconds"] - 2 * 599 * per_step
    assert 2 <= rest < 2.02  # of two cohorts, each with a second before its steps, and all else but milliseconds
    assert plan("digits-vit", 4, settings=SETTINGS, workers=2)["seconds"] == pytest.approx(planned["seconds"] / 2)


def test_adapters_that_take_no_steps_are_planned():
    planned = plan("digits-vit", 2, settings={**SETTINGS, "steps": 0})
    assert planned["milliseconds_per_adapter_step"] == 0 and planned["seconds"] > 0


def test_the_memory_is_what_a_run_takes(tmp_path):
    pytest.importorskip("resource", reason="Windows does not say how much a process had")
    settings = {"base_steps": 2, "steps": 7, "cohort": 64}
    code = (
        "import json, resource, sys\n"
        "from lorascope.forge import forge, plan\n"
        f"settings = {settings!r}\n"
        "if sys.argv[1:]: forge('digits-vit', 64, sys.argv[1], settings=settings)\n"
        "planned = None if sys.argv[1:] else plan('digits-vit', 64, settings=settings)['memory_bytes']\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        "print(json.dumps(planned or peak))"
    )
    planned, taken = (
        json.loads(subprocess.run([sys.executable, "-c", code, *out], check=True, capture_output=True).stdout)
        for out in ([], [str(tmp_path / "zoo")])
    )
    # what an allocator keeps differs by a tenth between two runs of one job, on either side
    assert planned == pytest.approx(taken, rel=0.25)


def test_the_device_is_the_one_that_is_named(monkeypatch):
    asked = []

    def device_of_process(device, number):
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(planning, "device_of_process", device_of_process)
    plan("digits-vit", 1, settings={**SETTINGS, "device": "cuda:1"})
    assert asked == ["cuda:1"]
