"""The tables of a bench for people: what somebody else calls the columns of a zoo harms no terminal and no page."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from lorascope.predict import MODELS
from lorascope.predict.bench import Plan, bench
from lorascope.report.bench import bench_as_markdown, bench_as_text, write_reports
from planted import planted_dataset

NAME = "a|b\x1b[31m$x_"


@pytest.fixture(scope="module")
def result():
    dataset = planted_dataset(40)
    hostile = replace(dataset, labels={NAME: dataset.labels["size"]}, _inputs={})
    models = {"ridge": MODELS["ridge"](size=4), "mlp": MODELS["mlp"](epochs=1)}
    return bench({"zoo": hostile}, Plan(models, [NAME], (0,), ("padding",)))


def test_no_control_character_reaches_the_screen(result):
    stream = io.StringIO()
    bench_as_text(result, Console(file=stream, width=200))
    assert "\x1b[31m" not in stream.getvalue()
    assert "refused [1]" in stream.getvalue()
    assert "no rank beyond those it was trained on" in stream.getvalue()


def test_a_bar_in_a_name_breaks_no_table(result):
    lines = bench_as_markdown(result).splitlines()
    assert any("a\\|b" in line for line in lines)
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len(tables) == 7 + 6  # two headers and rules, five rows and the four that are attacked
    assert len({line.count("|") for line in tables[:7]}) == len({line.count("|") for line in tables[7:]}) == 1
    assert "\x1b" not in "".join(lines)


def test_a_picture_for_each_zoo(result, tmp_path):
    tables, picture = write_reports(result, tmp_path)
    assert tables.read_text() == bench_as_markdown(result)
    assert picture.name == "zoo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
