"""The bench goes on from what was measured: nothing twice, nothing stale, nothing damaged."""

from dataclasses import replace

import pytest

from benched import Breaking, Counting, rows
from lorascope.predict.bench import Plan, bench
from lorascope.predict.bench.question import fingerprint
from planted import planted_dataset


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(80)


def test_an_interrupted_bench_goes_on_and_comes_to_the_same(dataset, tmp_path):
    plan = Plan({"counting": Counting(size=4)}, ["size", "first"], (0, 1), ("gauge",))
    Counting.fits.clear()
    whole = bench({"planted": dataset}, plan, cells=tmp_path / "whole")
    assert sorted(Counting.fits) == [0, 0, 1, 1]

    Counting.fits.clear()
    finished = []

    def stop(count):
        finished.append(count)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench({"planted": dataset}, plan, cells=tmp_path / "parts", done=stop)
    assert len(list((tmp_path / "parts").glob("*.json"))) == 3
    again = bench({"planted": dataset}, plan, cells=tmp_path / "parts")
    assert len(Counting.fits) == 4  # three before the interruption, and the one that was missing
    for one, two in zip(whole.tables, again.tables, strict=True):
        for first, second in zip(one.rows, two.rows, strict=True):
            assert first.metrics == second.metrics
            assert first.to_best == second.to_best
            assert {name: entry.score for name, entry in first.columns.items()} == {
                name: entry.score for name, entry in second.columns.items()
            }
    bench({"planted": dataset}, plan, cells=tmp_path / "parts")
    assert len(Counting.fits) == 4


def test_more_seeds_and_attacks_add_to_what_there_is(dataset, tmp_path):
    Counting.fits.clear()
    plan = Plan({"counting": Counting(size=4)}, ["size"], (0,))
    bench({"planted": dataset}, plan, cells=tmp_path)
    bench({"planted": dataset}, replace(plan, seeds=(0, 1)), cells=tmp_path)
    assert Counting.fits == [0, 1]
    attacked = bench({"planted": dataset}, replace(plan, seeds=(0, 1), attacks=("int8",)), cells=tmp_path)
    assert Counting.fits == [0, 1, 0, 1]
    assert rows(attacked.tables[0])["counting"].columns["int8"].status == "ok"


def test_a_damaged_cell_is_measured_again(dataset, tmp_path):
    Counting.fits.clear()
    plan = Plan({"counting": Counting(size=4)}, ["size"], (0,))
    first = bench({"planted": dataset}, plan, cells=tmp_path)
    contents = (b"", b"[]", b'{"key": 1}', b"\xff")
    for file, content in zip(tmp_path.glob("*.json"), contents, strict=True):
        file.write_bytes(content)
    again = bench({"planted": dataset}, plan, cells=tmp_path)
    assert rows(again.tables[0])["counting"].metrics == rows(first.tables[0])["counting"].metrics
    assert len(Counting.fits) == 2


def test_whatever_a_result_depends_on_is_in_the_fingerprint(dataset):
    moved = ("train", *dataset.splits[1:])
    samples = (dataset.samples[0]._replace(hyperparameters={"rate": 9.0}), *dataset.samples[1:])
    others = [
        replace(dataset, splits=moved),
        replace(dataset, groups=("other", *dataset.groups[1:])),
        replace(dataset, samples=samples),
        replace(dataset, digest="other"),
        dataset.subset(range(79)),
    ]
    assert len({fingerprint(one) for one in (dataset, *others)}) == 6


def test_what_fails_is_tried_again(dataset, tmp_path):
    plan = Plan({"broken": Breaking()}, ["size"], (0,))
    bench({"planted": dataset}, plan, cells=tmp_path)
    assert not any("breaking" in file.read_text() for file in tmp_path.glob("*.json"))
