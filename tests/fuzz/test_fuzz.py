"""A minute of mutants over all formats, with a fixed seed; and the harness catches every sort of planted bug."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import harness, planted
from fuzz.corpus import corpus
from fuzz.harness import Tally, results_of
from lorascope import formats
from lorascope.errors import AdapterError
from lorascope.testing.mutations import CHANGES, DAMAGES, mutant, names_for
from lorascope.testing.samples import encoded, materialised

SEED = 20
SECONDS = 30.0


@pytest.mark.parametrize("half", [0, 1])
def test_no_mutant_gives_anything_but_an_adapter_or_one_clear_error(half: int) -> None:
    tally = Tally(SEED)
    for result in results_of(SEED, range(half, 200_000, 2), until=time.monotonic() + SECONDS):
        tally.add(result)
    assert not tally.failures, "\n".join(tally.replays())
    assert tally.count > 500
    outcomes = {outcome for _, _, outcome in tally.outcomes}
    assert outcomes >= {"read", "refused"}
    assert {format for format, _, _ in tally.outcomes} == {sample.format for sample in corpus()}


def test_the_corpus_has_valid_files_of_every_format(tmp_path: Path) -> None:
    readable = {member.name for member in formats.formats() if member.read}
    read: set[str] = set()
    for sample in corpus():
        materialised(encoded(sample), tmp_path)
        try:
            read.add(formats.read(tmp_path / sample.file).provenance.format)
        except AdapterError as error:
            assert "not read by this version" in str(error), f"{sample.name}: {error}"
    assert read == readable


def test_a_mutant_is_its_seed_and_its_number() -> None:
    for index in range(200):
        assert mutant(corpus(), SEED, index) == mutant(corpus(), SEED, index)
    assert mutant(corpus(), SEED, 1) != mutant(corpus(), SEED + 1, 1)
    for container in ("safetensors", "npz", "torch", "torch-legacy", "gguf"):
        samples = [sample for sample in corpus() if sample.container == container]
        met = {name for index in range(600) for name in mutant(samples, SEED, index).mutations}
        assert met == set(names_for(container)) >= {*CHANGES, *DAMAGES}


def test_a_sound_reader_has_no_failures() -> None:
    assert [result.outcome for result in results_of(SEED, range(100), planted.sound)] == ["read"] * 100


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [
        (planted.slow, "slow"),
        (planted.hungry, "memory"),
        (planted.wrong, "exception"),
        (planted.warned, "warning"),
        (planted.executed, "executed"),
        (planted.crashed, "crash"),
        (planted.waiting, "hang"),
    ],
)
def test_a_planted_bug_is_caught(reader: Callable[[Path], int], outcome: str) -> None:
    tally = Tally(SEED)
    for result in results_of(SEED, [7], reader, hang=8.0 if outcome == "hang" else harness.HANG):
        tally.add(result)
    assert [failure.outcome for failure in tally.failures] == [outcome]
    assert f"--seed {SEED} --index 7" in tally.replays()[0]


def test_a_crash_ends_one_mutant_and_not_the_run() -> None:
    found = {result.index: result.outcome for result in results_of(SEED, range(8), planted.crashed_at_three)}
    assert found == {index: "crash" if index == 3 else "read" for index in range(8)}
