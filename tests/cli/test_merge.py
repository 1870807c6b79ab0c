"""``lorascope merge`` as a person runs it, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.cli import main
from lorascope.merge import METHODS

Run = Callable[..., tuple[int, str, str]]
SITES = [f"model.layers.{layer}.self_attn.{end}" for layer in (0, 1) for end in ("q_proj", "v_proj")]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, the output and the errors of ``lorascope merge`` with these arguments."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lorascope", "merge", *map(str, arguments)])
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def written(folder: Path, seed: int, rank: int, scale: float, to: str = "peft", sites: Any = tuple(SITES)) -> Path:
    random = np.random.default_rng(seed)
    adapter = Adapter(
        {
            site: LowRank(
                random.standard_normal((8, rank)).astype(np.float32),
                random.standard_normal((rank, 6)).astype(np.float32),
                scale,
            )
            for site in sites
        },
        Provenance(base_model="org/base", base_config={"model_type": "qwen2"}),
    )
    target = folder / f"{to}-{seed}"
    formats.write(adapter, target, format=to)
    return target


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Of ranks 2 and 3 and scales 0.5 and 2; the second is without the last site."""
    return [written(tmp_path, 1, 2, 0.5), written(tmp_path, 2, 3, 2.0, sites=tuple(SITES[:-1]))]


def delta(path: Path, site: str) -> Any:
    adapter = formats.read(path)
    return adapter[site].delta_weight(np.float64) if site in adapter else np.zeros((8, 6))


@pytest.mark.parametrize("to", ["peft", "kohya", "mlx"])
def test_a_merged_file_reads_back_as_the_weighted_sum(to: str, two: list[Path], tmp_path: Path, run: Run) -> None:
    target = tmp_path / ("merged" if to != "kohya" else "merged.safetensors")
    code, out, _ = run(*two, "-o", target, "--weights", "0.5,-1", "--to", to, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["schema_version"] == 1 and report["method"] == "linear" and report["output"] == str(target)
    assert report["missing"] == {str(two[1]): [SITES[-1]]} and report["left_out"] == [] and report["learned"] is None
    assert set(report["sites"]) == set(SITES) and report["sites"][SITES[0]]["rank"] == 5
    assert 0 < report["relative_error"] < 1e-6
    again = formats.read(target)
    assert len(again) == 4
    for site, update in zip(SITES, again.values(), strict=True):
        expected = 0.5 * delta(two[0], site) - delta(two[1], site)
        np.testing.assert_allclose(update.delta_weight(np.float64), expected, atol=1e-5)


def test_files_of_several_formats_merge(two: list[Path], tmp_path: Path, run: Run) -> None:
    other = written(tmp_path, 3, 2, 1.0, to="mlx")
    code, _, err = run(two[0], other, "-o", tmp_path / "merged", "--method", "average", "--any-base")
    assert code == 0, err
    for site in SITES:
        expected = (delta(two[0], site) + delta(other, site)) / 2
        np.testing.assert_allclose(delta(tmp_path / "merged", site), expected, atol=1e-5)


def test_a_cut_tells_its_error(two: list[Path], tmp_path: Path, run: Run) -> None:
    code, out, _ = run(*two, "-o", tmp_path / "merged", "--rank", 2, "--dtype", "float16")
    assert code == 0
    assert "linear → " in out and "4 sites of rank 2" in out and "relative error against the exact result: 0." in out
    assert f"{two[1]} has nothing at 1 site: {SITES[-1]}" in out
    code, out, _ = run(*two, "-o", tmp_path / "fine", "--error", 0.1, "--json")
    report = json.loads(out)
    assert all(site["relative_error"] <= 0.1 + 1e-6 for site in report["sites"].values())
    assert {site["rank"] for site in report["sites"].values()} <= {2, 3, 4, 5}
    code, out, _ = run(*two, "-o", tmp_path / "share", "--energy", 0.5, "--json")
    assert all(site["relative_error"] ** 2 <= 0.5 + 1e-6 for site in json.loads(out)["sites"].values())


def test_methods_options_and_seeds(two: list[Path], tmp_path: Path, run: Run) -> None:
    def made(*words: object) -> Any:
        target = tmp_path / "one"
        code, _, err = run(
            *two, "-o", target, "--method", "dare", "--option", "density=0.3", "--rank", 6, *words, "--overwrite"
        )
        assert code == 0, err
        return delta(target, SITES[0])

    first, again, other = made("--seed", 1), made("--seed", 1), made("--seed", 2)
    assert np.array_equal(first, again) and np.abs(first - other).max() > 0.1


def test_weights_for_the_sites_of_a_pattern(two: list[Path], tmp_path: Path, run: Run) -> None:
    words = ("--weights", "1,1", "--weights-for", "*.q_proj=0,-2", "--weights-for", "*.1.*=3,0")
    code, _, err = run(*two, "-o", tmp_path / "merged", *words)
    assert code == 0, err
    q, v, _, last = SITES
    np.testing.assert_allclose(delta(tmp_path / "merged", q), -2 * delta(two[1], q), atol=1e-5)
    np.testing.assert_allclose(delta(tmp_path / "merged", v), delta(two[0], v) + delta(two[1], v), atol=1e-5)
    np.testing.assert_allclose(delta(tmp_path / "merged", last), 3 * delta(two[0], last), atol=1e-5)


def test_the_methods_are_listed(run: Run) -> None:
    code, out, _ = run("--methods", "--json")
    listed = json.loads(out)
    assert code == 0 and [one["name"] for one in listed["methods"]] == METHODS.names()
    [ties] = [one for one in listed["methods"] if one["name"] == "ties"]
    assert ties["options"] == {"density": 0.2, "factor": 1.0} and ties["invariance"] == "GL(r)"
    code, out, _ = run("--methods")
    assert code == 0 and "ffa *" in out and "ties *" not in out and "density=0.2" in out
    assert "content=*up_blocks.0.attentions.0.*,*output_blocks.0.1.*" in out


def test_weights_are_learned_from_a_function_of_the_users_own(two: list[Path], tmp_path: Path, run: Run) -> None:
    (tmp_path / "examples.py").write_text(
        f"import numpy as np\ndef loss(adapter):\n    return float(abs(adapter[{SITES[-1]!r}].norm() - 3.0))\n"
    )
    words = ("--learn", f"{tmp_path / 'examples.py'}:loss", "--evaluations", 30)
    code, out, err = run(*two, "-o", tmp_path / "merged", *words, "--json")
    assert code == 0, err
    learned = json.loads(out)["learned"]
    assert learned["loss_of_base"] == 3.0 and learned["loss"] < 1.0 and learned["evaluations"] <= 30
    assert abs(float(np.linalg.norm(delta(tmp_path / "merged", SITES[-1]))) - 3.0) < 1.0
    code, out, _ = run(*two, "-o", tmp_path / "merged", *words, "--overwrite")
    assert code == 0 and "weights learned in" in out and "without the adapters 3" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "nothing to do"),
        (("a", "-o", "out", "--method", "tise"), "did you mean 'ties'"),
        (("a", "-o", "out", "--method", "ties", "--option", "dense=1"), "there is no such option.*density, factor"),
        (("a", "-o", "out", "--method", "ties", "--option", "density=2"), "density: there is no such share"),
        (("a", "-o", "out", "--method", "ties", "--option", "density=x"), "density: the value does not fit"),
        (("a", "-o", "out", "--weights", "1,x"), "--weights: not numbers"),
        (("a", "-o", "out", "--weights-for", "1,2"), "--weights-for: not a pattern with weights"),
        (("a", "-o", "out", "--rank", "0"), "rank: an update of rank 0 is none"),
        (("a", "-o", "out", "--energy", "2"), "energy: there is no such share"),
        (("a", "-o", "out", "--learn", "loss.py"), "--learn: not a function in a file"),
        (("a", "-o", "out", "--learn", "nowhere.py:loss"), "nowhere.py: --learn: there is no such file"),
        (("a", "-o", "out", "--learn", "nowhere.py:loss", "--weights", "1"), "weights are either given or learned"),
        (("nowhere", "-o", "out"), "nowhere"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == 2 and not out and re.search(expected, err, re.DOTALL), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "beside", "..", "adapter_model.safetensors"])
def test_no_adapter_is_written_over_by_what_is_made_of_it(
    place: str, two: list[Path], tmp_path: Path, run: Run
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = run(*two, "-o", two[1] / place, *(("--to", "kohya") if "." in place[2:] else ()))
    assert code == 2 and "the source is never overwritten" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_of_another_adapter_are_not_mixed_with_the_result(two: list[Path], tmp_path: Path, run: Run) -> None:
    other = written(tmp_path, 3, 2, 1.0, to="mlx")
    before = {path: path.read_bytes() for path in other.iterdir()}
    code, _, err = run(*two, "-o", other)
    assert code == 2 and "the folder is not empty" in err and "--overwrite" in err
    code, _, err = run(*two, "-o", other, "--overwrite")
    assert code == 2 and "more than what would be replaced (found adapters.safetensors)" in err
    assert {path: path.read_bytes() for path in other.iterdir()} == before
    code, _, err = run(*two, "-o", other, "--to", "mlx", "--any-base", "--overwrite")
    assert code == 0, err
    assert {path.name for path in other.iterdir()} == {path.name for path in before}
    (other / "README.md").write_text("of the old adapter")
    code, _, err = run(*two, "-o", other, "--to", "mlx", "--any-base", "--overwrite")
    assert code == 2 and "found README.md" in err


def test_a_file_name_chooses_the_format_where_one_is_meant(two: list[Path], tmp_path: Path, run: Run) -> None:
    code, _, err = run(*two, "-o", tmp_path / "x.safetensors")
    assert code == 2 and "peft is a folder" in err and "kohya" in err and not (tmp_path / "x.safetensors").exists()
    for path in two:
        formats.write(formats.read(path), path.with_name(f"{path.name}.safetensors"), format="kohya")
    files = [path.with_name(f"{path.name}.safetensors") for path in two]
    assert run(*files, "-o", tmp_path / "x.safetensors")[0] == 0
    assert formats.read(tmp_path / "x.safetensors").provenance.format == "kohya"
    code, _, err = run(*files, "-o", tmp_path / "v1.5", "--to", "kohya")
    assert code == 2 and "name it v1.5.safetensors" in err and not (tmp_path / "v1.5").exists()


def test_a_users_file_that_fails_is_named(tmp_path: Path, two: list[Path], run: Run) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no data')\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "wrong.py").write_text("def loss(adapter):\n    return adapter['nowhere']\n")
    for name, words in (
        ("broken", "the file fails when it is executed"),
        ("empty", "defines no such function"),
        ("wrong", "loss, line 2: the function fails (found KeyError('nowhere'))"),
    ):
        code, _, err = run(*two, "-o", tmp_path / "out", "--learn", f"{tmp_path / name}.py:loss")
        assert code == 2 and words in err and not (tmp_path / "out").exists()


def test_an_adapter_that_is_merged_is_never_overwritten(two: list[Path], run: Run) -> None:
    weights = [path / "adapter_model.safetensors" for path in two]
    before = [one.read_bytes() for one in weights]
    for output in (two[0], two[1], weights[1], two[0].parent):
        code, _, err = run(*two, "-o", output)
        assert code == 2 and "the source is never overwritten" in err
    assert [one.read_bytes() for one in weights] == before


def test_a_result_beyond_the_range_of_the_dtype_is_refused_and_not_written(two: list[Path], run: Run) -> None:
    output = two[0].parent / "out"
    code, _, err = run(*two, "-o", output, "--weights", "1e12,1", "--dtype", "float16")
    assert code == 2 and SITES[0] in err and "too large for the dtype" in err and not output.exists()


@pytest.mark.parametrize("weights", [["0.5", "-.2"], ["0.5,-.2"], ["5e-1", "-0.2"]])
def test_weights_may_stand_apart(weights: list[str], two: list[Path], tmp_path: Path, run: Run) -> None:
    code, _, error = run(*two, "--weights", *weights, "-o", tmp_path / "sum")
    assert code == 0, error
    expected = 0.5 * delta(two[0], SITES[0]) - 0.2 * delta(two[1], SITES[0])
    assert np.allclose(delta(tmp_path / "sum", SITES[0]), expected, atol=1e-5)


def test_what_is_there_is_an_adapter_and_no_weight(
    two: list[Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two[0].rename("1")
    code, _, error = run("--weights", "1,2", "1", two[1], "-o", "sum")
    assert code == 0, error


def test_a_format_that_holds_the_merge_is_named(tmp_path: Path, run: Run) -> None:
    sites = [f"image_encoder.blocks.{block}.attn.qkv[{begin}:{begin + 8}]" for block in range(12) for begin in (0, 16)]
    for number in (0, 1):
        random = np.random.default_rng(number)
        shapes = ((8, 1), (1, 768))  # of 12 blocks of that width, so that the numbers in the file are certain
        factors = {site: [random.standard_normal(shape).astype(np.float32) for shape in shapes] for site in sites}
        adapter = Adapter({site: LowRank(*own) for site, own in factors.items()})
        formats.write(adapter, tmp_path / str(number), format="sam-lora")
    given = [tmp_path / "0", tmp_path / "1", "-o"]
    code, _, error = run(*given, tmp_path / "sum")
    assert code == 2 and "--to sam-lora" in error
    assert run(*given, tmp_path / "sum.safetensors", "--to", "sam-lora")[0] == 0


def test_sites_that_are_numbers_are_not_written_as_names(run: Run, tmp_path: Path) -> None:
    numbered = written(tmp_path, 5, 2, 1.0, "cloneofsimo", ("unet:0", "unet:1"))
    out = tmp_path / "out"
    code, _, errors = run(numbered, numbered, "-o", out)
    assert code == 2 and "2 sites such as unet:0 are numbered" in errors and not out.exists()
    code, text, errors = run(numbered, numbered, "-o", out, "--allow-loss", "--json")
    assert code == 0 and json.loads(text)["left_out"][0].startswith("names of layers"), errors
    code, text, errors = run(numbered, numbered, "-o", tmp_path / "own.safetensors", "--to", "cloneofsimo", "--json")
    assert code == 0 and json.loads(text)["left_out"] == [], errors
