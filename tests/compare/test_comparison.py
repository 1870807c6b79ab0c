"""Laws of comparisons, over awkward updates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.cli import app
from lorascope.compare import compare
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats import read, write
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.common_sites import CommonSites
from lorascope.testing import CONSTANT, adapters

UNIT = float(np.finfo(np.float64).eps)
SHAPES = ((9, 7), (5, 12))


def reach(*some: Adapter) -> float:
    """Σ |s| ‖B‖‖A‖: what the rounding of a distance is relative to."""
    return sum(
        abs(update.scale) * float(np.linalg.norm(update.stored["B"]) * np.linalg.norm(update.stored["A"]))
        for adapter in some
        for update in adapter.values()
    )


def planted(seed: int, sites: Any = ("q", "k"), rank: int = 3, shape: tuple[int, int] = (12, 9)) -> Adapter:
    random = np.random.default_rng(seed)
    return Adapter(
        {
            site: LowRank(random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1])), 0.5)
            for site in sites
        }
    )


@settings(max_examples=15)
@given(one=adapters(shapes=SHAPES), other=adapters(shapes=SHAPES), seed=st.integers(0, 99))
def test_gauge_padding_and_scale_convention_change_nothing(one: Adapter, other: Adapter, seed: int) -> None:
    random = np.random.default_rng(seed)
    turned = gauged(one, lambda rank: random_gauge(rank, condition=30.0, rng=random))
    padded = {
        site: LowRank(np.pad(u.B * u.scale / 2, ((0, 0), (0, 3))), np.pad(u.A, ((0, 3), (0, 0))), scale=2.0)
        for site, u in turned.items()
        if isinstance(u, LowRank)
    }
    variant = Adapter(padded)
    before, after = compare([one, other]), compare([variant, other])
    room = CONSTANT * UNIT * 30 * reach(one, other, variant)
    assert abs(before.distance - after.distance) <= room
    assert abs(before.spectrum_distance - after.spectrum_distance) <= room
    assert compare([one, variant]).distance <= room
    assert np.abs(before.norms - after.norms).max() <= room


@settings(max_examples=15)
@given(some=st.lists(adapters(shapes=SHAPES), min_size=3, max_size=3))
def test_the_distance_is_a_metric_and_above_that_of_spectra(some: list[Adapter]) -> None:
    room = CONSTANT * UNIT * reach(*some)
    one, two, three = some
    there, back = compare([one, two]), compare([two, one])
    assert abs(there.distance - back.distance) <= room
    assert there.distance <= compare([one, three]).distance + compare([three, two]).distance + room
    assert compare([one, one]).distance <= room
    assert there.spectrum_distance <= there.distance + room
    assert 0 <= there.relative_distance <= 2 + 1e-9
    dense = math.hypot(
        *(float(np.linalg.norm(one[s].delta_weight(np.float64) - two[s].delta_weight(np.float64))) for s in one)
    )
    assert abs(there.distance - dense) <= room
    if there.cosine is not None:
        product = sum(float(np.vdot(one[s].delta_weight(np.float64), two[s].delta_weight(np.float64))) for s in one)
        assert abs(there.cosine * float(there.norms.prod()) - product) <= room * reach(*some)
    else:
        assert there.norms.min() == 0


def test_near_duplicates_keep_their_digits() -> None:
    one = planted(1)
    q = one["q"]
    assert isinstance(q, LowRank)
    bump = np.zeros_like(q.B)
    bump[0, 0] = 1e-7 * np.linalg.norm(q.B)
    near = one.with_sites({"q": replace(q, B=q.B + bump), "k": one["k"]})
    expected = q.scale * np.linalg.norm(near["q"].stored["B"] - q.B) * np.linalg.norm(q.A[0])
    found = compare([one, near])
    # an entry of B of size 1 keeps 2.2e-16 of it, so that the bump itself is known to 1e-9
    assert found.distance == pytest.approx(expected, rel=1e-7)
    assert 1e-8 < found.relative_distance < 1e-6


def test_formats_and_dtypes(tmp_path: Any) -> None:
    one = planted(2, ("layers.0.q", "layers.0.k"))
    for format in ("peft", "kohya", "mlx", "loralib"):
        path = tmp_path / (format if format in ("peft", "mlx") else f"{format}.safetensors")
        write(one, path, format=format, dtype="float32")
        again = read(path)
        # factors rounded to float32: each to 2⁻²⁴, relative to ‖B‖‖A‖
        assert compare([one, again]).distance <= 2.0**-22 * reach(one)


def test_figures_over_shared_sites_and_what_is_not_shared() -> None:
    one, two = planted(1, ("q", "k")), planted(2, ("q", "v"))
    found = compare([one, two], names=["one", "two"])
    assert found.shared == ("q",) and set(found.sites) == {"q"}
    assert found.not_shared["one"] == {"k": pytest.approx(one["k"].norm())}
    assert found.not_shared["two"] == {"v": pytest.approx(two["v"].norm())}
    assert found.norms[0] == pytest.approx(one["q"].norm())


def test_two_names_of_one_layer_are_one_site() -> None:
    one, two = planted(1, ("unet.0.q", "unet.0.k")), planted(1, ("0.q", "0.k"))
    assert compare([one, two]).relative_distance < 1e-14


def test_a_zero_update_has_no_cosine_and_no_angles() -> None:
    one = planted(1)
    zero = one.with_sites({site: LowRank(np.zeros((12, 2)), np.ones((2, 9))) for site in one})
    found = compare([one, zero])
    assert found.cosine is None and found.columns is None and found.relative_distance == pytest.approx(1.0)
    assert found.shares == [pytest.approx(1.0), 0.0]
    both = compare([zero, zero])
    assert both.relative_distance == 0 and both.interference is None and both.shares == [None, None]


def test_angles_and_interference_of_known_updates() -> None:
    def of(column: int, row: int, size: float = 1.0) -> Adapter:
        return Adapter({"q": LowRank(size * np.eye(4)[:, [column]], np.eye(4)[[row]])})

    found = compare([of(0, 0), of(0, 1)])
    assert found.columns is not None and found.rows is not None
    assert found.columns.overlap == pytest.approx(1) and found.columns.mean == pytest.approx(0, abs=1e-9)
    assert found.rows.overlap == pytest.approx(0, abs=1e-12) and found.rows.smallest == pytest.approx(math.pi / 2)
    assert found.interference == pytest.approx(1 - 1 / math.sqrt(2))
    assert compare([of(0, 0), of(0, 0, -1.0)]).interference == pytest.approx(1)
    assert compare([of(0, 0), of(0, 0, 3.0)]).interference == pytest.approx(0, abs=1e-12)
    assert compare([of(0, 0), of(0, 0, 3.0)]).shares == pytest.approx([0.1, 0.9])


def test_signs_are_those_of_dense_matrices() -> None:
    one, two = planted(1), planted(2)
    found = compare([one, two], has_signs=True)
    product = [np.sign(one[s].delta_weight(np.float64) * two[s].delta_weight(np.float64)) for s in one]
    assert found.signs is not None
    assert found.signs.alike == sum(int((p > 0).sum()) for p in product)
    assert found.signs.opposite == sum(int((p < 0).sum()) for p in product)


def test_bad_input_is_one_error_that_names_the_file() -> None:
    one = planted(1)
    q = one["q"]
    assert isinstance(q, LowRank)
    bad = one.with_sites({"q": replace(q, B=np.full_like(q.B, np.nan)), "k": one["k"]})
    for some in ([one, bad], [one, planted(2), bad]):
        names = [f"n{place}" for place in range(len(some))]
        with pytest.raises(AdapterError, match="non-finite") as caught:
            compare(some, names=names)
        assert caught.value.file == names[-1]
    with pytest.raises(AdapterError, match="no site in common"):
        compare([one, planted(2, ("x",))])
    with pytest.raises(AdapterError, match="another shape"):
        compare([one, planted(2, shape=(9, 9))])
    with pytest.raises(AdapterError, match="different base"):
        compare([replace(one, provenance=Provenance(base_model=base)) for base in ("a/one", "a/two")])
    with pytest.raises(AdapterError, match=r"range|large"):
        compare([one, one.with_sites({site: replace(u, scale=1e200) for site, u in one.items()})])
    with pytest.raises(LorascopeError, match="signs are counted of two"):
        compare([one, one, one], has_signs=True)
    with pytest.raises(LorascopeError, match="nothing to compare"):
        compare([one])


def test_the_command(tmp_path: Path) -> None:
    for seed in range(3):
        write(planted(seed), tmp_path / f"a{seed}", format="peft")
    places, run = [str(tmp_path / f"a{seed}") for seed in range(3)], CliRunner()
    two = json.loads(run.invoke(app, ["compare", *places[:2], "--signs", "--json"]).stdout)
    assert two["schema_version"] == 1 and two["not_shared"] == {} and set(two["sites"]) == {"q", "k"}
    assert two["distance"] == pytest.approx(compare([planted(0), planted(1)]).distance)
    assert two["signs"]["agreement"] == pytest.approx(0.5, abs=0.2)
    plot = tmp_path / "far.png"
    three = json.loads(run.invoke(app, ["compare", *places, "--json", "--plot", str(plot)]).stdout)
    assert np.array(three["distance"]).shape == (3, 3) and three["distance"][0][1] == pytest.approx(two["distance"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    for some in (places[:2], places):
        assert "interference" in run.invoke(app, ["compare", *some]).stdout
    assert isinstance(run.invoke(app, ["compare", *places, "--plot", "far.txt"]).exception, LorascopeError)


def test_sites_that_are_not_shared_are_told_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a hundred thousand sites grows with their number, not its square."""
    passes: list[int] = []

    class Watched(tuple[str, ...]):
        def __iter__(self) -> Any:
            passes.append(1)
            return super().__iter__()

    shared = CommonSites.shared.func
    monkeypatch.setattr(CommonSites, "shared", property(lambda self: Watched(shared(self))))
    one = planted(1, sites=[f"q{site}" for site in range(40)])
    two = planted(2, sites=[f"q{site}" for site in range(20, 60)])
    found = compare([one, two])
    assert set(found.not_shared["adapter 1"]) == {f"q{site}" for site in range(20)} and len(passes) < 20
