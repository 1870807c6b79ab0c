"""Faults: kills, a full disk, two runs at once, divergence, power cuts. The zoo is the one it would have been."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lorascope.cli import main
from lorascope.errors import OutputError, ZooError
from lorascope.forge import forge
from lorascope.forge.recipes import RECIPES
from lorascope.zoo import Zoo, pack, verify_zoo
from lorascope.zoo.lock import locked
from lorascope.zoo.log import read_log

SETTINGS = {"base_steps": 60, "steps": 8}


def state(zoo):
    return {
        path.relative_to(zoo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in zoo.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "zoo.json", "log.jsonl")
    }


def start(out, before=""):
    """A run in a process of its own."""
    code = (
        "import sys; from lorascope.errors import LorascopeError; from lorascope.forge import forge\n"
        f"{before}\n"
        f"try: forge('digits-vit', 40, {str(out)!r}, settings={SETTINGS!r})\n"
        "except LorascopeError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)


STATES = {
    "the header is there": lambda zoo: (zoo / "zoo.json").is_file(),
    "the base is there": lambda zoo: (zoo / "base" / "model.safetensors").is_file(),
    "the first cohort is being written": lambda zoo: any(zoo.glob(".tmp-cohort-0-*/*")),
    "the second cohort is being written": lambda zoo: any(zoo.glob(".tmp-cohort-1-*/*")),
}


def test_kills_in_every_state_lose_nothing(forged, tmp_path):
    zoo, rng = tmp_path / "zoo", random.Random(0)
    for name, is_reached in STATES.items():
        process = start(zoo)
        while not is_reached(zoo):
            assert process.poll() is None, f"ended before {name}"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, f"ended after {name}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, name
    forge("digits-vit", 40, zoo, settings=SETTINGS)
    assert state(zoo) == state(forged.path) and not verify_zoo(zoo).defects


def test_a_disk_that_is_full_is_an_error_and_the_next_run_goes_on(forged, tmp_path):
    # no file can grow beyond what this much holds, as on a full disk: the weights of an adapter do not fit
    shutil.copytree(forged.path / "base", tmp_path / "zoo" / "base")
    shutil.copy(forged.path / "zoo.json", tmp_path / "zoo")
    process = start(tmp_path / "zoo", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))")
    errors = process.communicate()[1]
    assert process.returncode == 1 and errors.startswith("OutputError") and "Traceback" not in errors
    assert not list((tmp_path / "zoo" / "adapters").iterdir()) and not list((tmp_path / "zoo").glob("cohorts/*.json"))
    forge("digits-vit", 40, tmp_path / "zoo", settings=SETTINGS)
    assert state(tmp_path / "zoo") == state(forged.path)
    ends = [line for line in read_log(tmp_path / "zoo") if line["event"] == "ended"]
    assert [line["error"] for line in ends] == ["OutputError", None]


def test_of_two_runs_at_once_one_forges_and_the_other_says_so(forged, tmp_path):
    runs = [start(tmp_path / "zoo") for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    assert "another run is changing this zoo" in "".join(errors)
    assert state(tmp_path / "zoo") == state(forged.path)


def test_an_adapter_that_diverges_is_kept_apart_and_changes_no_other(forged, tmp_path, monkeypatch):
    recipe = RECIPES["digits-vit"]
    drawn = type(recipe).draw

    def draw(self, zoo_seed, index, settings):
        row = drawn(self, zoo_seed, index, settings)
        return row | {"learning_rate": 1e30} if index == 3 else row

    monkeypatch.setattr(type(recipe), "draw", draw)
    assert forge("digits-vit", 32, tmp_path / "zoo", settings=SETTINGS).diverged == 1
    zoo = Zoo.open(tmp_path / "zoo")
    rows = zoo.rows(only_usable=False)
    assert [row["status"] for row in rows].index("diverged") == 3 and len(zoo.rows()) == 31
    assert rows[3]["path"] == f"diverged/{rows[3]['id']}" and zoo.adapter_path(rows[3]).is_dir()
    assert len(list((zoo.path / "adapters").iterdir())) == 31 and not verify_zoo(zoo.path).defects
    # the others of its cohort, bit for bit
    assert zoo.rows() == [row for row in forged.rows()[:32] if row["id"] != rows[3]["id"]]
    pack(zoo)
    assert not verify_zoo(zoo.path).defects and (zoo.path / rows[3]["path"]).is_dir()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is synced is seen in /proc")
def test_adapters_are_on_the_disk_before_their_record(forged, tmp_path, monkeypatch):
    events = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def synced(descriptor):
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def moved(original):
        def move(self, target):
            events.append(("move", str(self), str(target)))
            return original(self, target)

        return move

    shutil.copytree(forged.path / "base", tmp_path / "zoo" / "base")
    shutil.copy(forged.path / "zoo.json", tmp_path / "zoo")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved(replace))
    monkeypatch.setattr(Path, "rename", moved(rename))
    forge("digits-vit", 2, tmp_path / "zoo", settings=SETTINGS)
    moves = [(n, *event[1:]) for n, event in enumerate(events) if event[0] == "move"]
    syncs = [(n, event[1]) for n, event in enumerate(events) if event[0] == "sync"]
    into_place = [(n, source) for n, source, target in moves if Path(target).parent.name == "adapters"]
    [(record, temporary)] = [(n, source) for n, source, target in moves if Path(target).parent.name == "cohorts"]
    assert len(into_place) == 2
    for when, source in into_place:
        before = {name for n, name in syncs if n < when}
        assert {f"{source}/adapter_model.safetensors", f"{source}/adapter_config.json", source} <= before
        assert any(when < n < record and name.endswith("/adapters") for n, name in syncs)
    assert any(n < record and name == temporary for n, name in syncs)
    assert any(n > record and name.endswith("/cohorts") for n, name in syncs)


def test_what_reads_a_zoo_changes_nothing_in_it_and_needs_no_lock(forged, monkeypatch, capsys):
    one = forged.adapter_path(forged.rows()[0])
    with locked(forged.path):
        before = {path: path.stat().st_mtime_ns for path in forged.path.rglob("*")}
        for arguments in (["zoo", "info", forged.path], ["zoo", "verify", forged.path], ["inspect", one, "--json"]):
            monkeypatch.setattr("sys.argv", ["lorascope", *map(str, arguments)])
            try:
                main()
            except SystemExit as stop:
                assert not stop.code, capsys.readouterr()
        assert {path: path.stat().st_mtime_ns for path in forged.path.rglob("*")} == before


def test_a_zoo_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    tiny = {"base_steps": 2, "steps": 1}
    forge("digits-vit", 1, tmp_path / "zoo", settings=tiny)
    before = state(tmp_path / "zoo")

    def refused(path, flags, *arguments, **named):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Read-only file system", str(path))
        return opened(path, flags, *arguments, **named)

    opened = os.open
    monkeypatch.setattr(os, "open", refused)  # the superuser, who may run this, is refused by no file mode
    for run in (
        lambda: forge("digits-vit", 2, tmp_path / "zoo", settings=tiny),
        lambda: pack(Zoo.open(tmp_path / "zoo")),
    ):
        with pytest.raises(OutputError, match="cannot be written"):
            run()
    assert state(tmp_path / "zoo") == before


def test_the_log_says_what_was_done_and_nothing_of_the_machine_s_names(tmp_path):
    tiny = {"base_steps": 2, "steps": 1}
    forge("digits-vit", 1, tmp_path / "zoo", settings=tiny)
    with (tmp_path / "zoo" / "log.jsonl").open("a") as stream:
        stream.write('{"event": "torn by a power c')
    forge("digits-vit", 2, tmp_path / "zoo", settings=tiny)
    lines = read_log(tmp_path / "zoo")
    assert [(line["event"], line["command"]) for line in lines] == [("began", "forge"), ("ended", "forge")] * 2
    assert lines[0]["settings"]["settings"]["steps"] == 1 and lines[0]["machine"]["torch"] == str(torch.__version__)
    assert lines[3]["counts"] == {"forged": 1, "already_there": 1, "diverged": 0} and lines[3]["error"] is None
    text = json.dumps(lines)
    assert str(tmp_path) not in text and os.uname().nodename not in text
    with locked(tmp_path / "zoo"), pytest.raises(ZooError):
        forge("digits-vit", 2, tmp_path / "zoo", settings=tiny)
    assert len(read_log(tmp_path / "zoo")) == 4
