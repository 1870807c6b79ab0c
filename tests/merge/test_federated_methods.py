"""fedex, ffa, fed-sb, b-lora and learned weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import LorascopeError
from lorascope.merge import METHODS, Parts, learn_weights, merge
from lorascope.merge.methods.fedex import factor_average, residual
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.common_sites import CommonSites
from merge import dense_references as references

SHAPE, WEIGHTS = (12, 9), [0.2, 0.5, 1.3]


def sharing(*factors: str, seed: int = 0, noise: float = 0.0, rank: int = 3) -> list[Adapter]:
    """Three adapters with the same ``A``, or the same ``B`` and ``A`` around cores, each in a gauge of its own."""
    random = np.random.default_rng(seed)
    B, A = random.standard_normal((SHAPE[0], rank)), random.standard_normal((rank, SHAPE[1]))
    found: list[Adapter] = []
    for _ in range(3):
        own = B @ random.standard_normal((rank, rank)) if "B" in factors else random.standard_normal(B.shape)
        near = A + noise * random.standard_normal(A.shape)
        one = Adapter({"q": LowRank(own, near, scale=random.uniform(0.5, 2))})
        found.append(gauged(one, lambda r: random_gauge(r, condition=20.0, rng=random)))
    return found


def mean_of(adapters: list[Adapter], weights: list[float] = WEIGHTS) -> Any:
    deltas = references.deltas_of(adapters)
    return sum(w * delta for w, delta in zip(weights, deltas, strict=True)) / sum(weights)


@pytest.mark.parametrize("name", ["fedex", "ffa", "fed-sb", "average"])
def test_each_is_the_mean_of_the_products(name: str) -> None:
    adapters = sharing("A", "B") if name == "fed-sb" else sharing("A")
    done = merge(adapters, name, weights=WEIGHTS, dtype=np.float64)
    np.testing.assert_allclose(done.adapter["q"].delta_weight(np.float64), mean_of(adapters), atol=1e-11)
    if name in ("ffa", "fed-sb"):
        assert done.adapter["q"].dim == 3
    assert done.relative_error < 1e-12


def test_fedex_is_the_average_of_unlike_adapters() -> None:
    adapters = references.adapters_of(SHAPE, (1, 2, 3))
    done = merge(adapters, "fedex", weights=WEIGHTS, dtype=np.float64)
    np.testing.assert_allclose(done.adapter["q"].delta_weight(np.float64), mean_of(adapters), atol=1e-11)
    assert done.adapter["q"].dim == 6


def test_averaged_factors_are_off_by_the_residual_and_it_depends_on_the_gauge() -> None:
    adapters = references.adapters_of(SHAPE, (2, 2))
    weights = np.array([0.5, 0.5])
    parts = Parts("q", CommonSites.of(adapters).pairs("q", np.float64), weights)
    mean, rest = factor_average(parts), residual(parts)
    assert mean.B.shape[1] == 2
    np.testing.assert_allclose(mean.B @ mean.A + rest.B @ rest.A, mean_of(adapters, [1.0, 1.0]), atol=1e-12)
    assert np.linalg.norm(rest.B @ rest.A) > 0.1 * np.linalg.norm(mean_of(adapters, [1.0, 1.0]))
    turned = [adapters[0], gauged(adapters[1], lambda r: -np.eye(r))]
    other = residual(Parts("q", CommonSites.of(turned).pairs("q", np.float64), weights))
    assert np.linalg.norm(other.B @ other.A - rest.B @ rest.A) > 0.1


def test_ffa_refuses_what_does_not_share_a_with_the_measured_deviation() -> None:
    with pytest.raises(LorascopeError, match=r"^q: the adapters do not share A.*found 0\.\d+ of that of adapter \d"):
        merge(references.adapters_of(SHAPE, (3, 3, 3)), "ffa")
    noisy = sharing("A", noise=1e-3)
    with pytest.raises(LorascopeError, match="do not share A") as refusal:
        merge(noisy, "ffa")
    assert refusal.value.found is not None and 1e-4 < float(refusal.value.found.split()[0]) < 1e-2
    done = merge(noisy, METHODS["ffa"](tolerance=0.1), weights=WEIGHTS, dtype=np.float64)
    found = done.adapter["q"].delta_weight(np.float64)
    assert 1e-5 < np.linalg.norm(found - mean_of(noisy)) / np.linalg.norm(found) < 1e-2


def test_the_deviation_is_that_of_the_dense_projection() -> None:
    noisy = sharing("A", noise=1e-2)
    deltas = references.deltas_of(noisy)
    V = np.linalg.svd(np.concatenate(deltas))[2][:3].T
    expected = max(np.linalg.norm(delta - delta @ V @ V.T) / np.linalg.norm(delta) for delta in deltas)
    with pytest.raises(LorascopeError) as refusal:
        merge(noisy, "ffa")
    assert refusal.value.found is not None and refusal.value.found.startswith(f"{expected:.3g} ")


def test_fed_sb_refuses_what_shares_only_a() -> None:
    with pytest.raises(LorascopeError, match="do not share B"):
        merge(sharing("A"), "fed-sb")
    with pytest.raises(LorascopeError, match="do not share A"):
        merge(sharing("A", "B", noise=1e-2), METHODS["fed-sb"]())


def test_an_adapter_without_the_site_counts_as_zero() -> None:
    for name, adapters in (("ffa", sharing("A")), ("fed-sb", sharing("A", "B"))):
        other = Adapter({"k": adapters[0]["q"]})
        done = merge([*adapters, other], name, dtype=np.float64)
        expected = 0.75 * mean_of(adapters, [1.0, 1.0, 1.0])
        np.testing.assert_allclose(done.adapter["q"].delta_weight(np.float64), expected, atol=1e-11)


def test_means_of_weights_that_sum_to_zero_are_refused() -> None:
    for name in ("average", "fedex", "ffa"):
        with pytest.raises(LorascopeError, match="sum to zero"):
            merge(sharing("A"), name, weights=[1.0, -1.0, 0.0])


def sdxl(seed: int) -> Adapter:
    random = np.random.default_rng(seed)
    blocks = ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "down_blocks.1.attentions.0")
    return Adapter(
        {
            f"unet.{block}.transformer_blocks.0.attn1.to_q": LowRank(
                random.standard_normal((6, 2)), random.standard_normal((2, 5))
            )
            for block in blocks
        }
    )


def test_b_lora_takes_content_of_one_and_style_of_the_other() -> None:
    first, second = sdxl(1), sdxl(2)
    content, style, other = first
    done = merge([first, second], "b-lora", weights=[1.0, 0.5], dtype=np.float64).adapter
    for site, expected in (
        (content, first[content].delta_weight(np.float64)),
        (style, 0.5 * second[style].delta_weight(np.float64)),
        (other, np.zeros((6, 5))),
    ):
        np.testing.assert_allclose(done[site].delta_weight(np.float64), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"content": ("*.nothing.*",)}, r"content: no site is one of content .expected a site that fits \*.nothing.\*"),
        ({"style": ()}, "style: no site is one of style"),
        ({"content": ("*",)}, "attentions.1.*: a site is one of content and of style"),
    ],
)
def test_b_lora_says_where_patterns_fit_no_site_or_too_many(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LorascopeError, match=words):
        merge([sdxl(1), sdxl(2)], METHODS["b-lora"](**options))


def test_numbers_of_adapters_are_checked() -> None:
    for name in ("b-lora", "slerp"):
        with pytest.raises(LorascopeError, match=f"{name} is defined for two adapters"):
            merge([sdxl(1)], name)


def test_learned_weights_find_the_mixture_that_the_loss_was_made_of() -> None:
    adapters = references.adapters_of(SHAPE, (1, 2, 3))
    wanted = merge(adapters, "linear", weights=[0.8, 0.0, -0.5]).adapter["q"].delta_weight(np.float64)
    calls: list[int] = []

    def loss(merged: Adapter) -> float:
        return float(np.linalg.norm(merged["q"].delta_weight(np.float64) - wanted) / np.linalg.norm(wanted))

    found = learn_weights(adapters, loss, evaluations=60, advance=calls.append)
    assert len(calls) == found.evaluations <= 60
    assert found.first == pytest.approx(1.0) and found.loss < 0.1
    np.testing.assert_allclose(found.weights, [0.8, 0.0, -0.5], atol=0.1)
    bounded = learn_weights(adapters, loss, evaluations=60, bound=0.3)
    assert np.abs(bounded.weights).max() <= 0.3 and bounded.loss > found.loss
    again = learn_weights(adapters, loss, evaluations=60)
    assert np.array_equal(again.weights, found.weights)


def test_learning_refuses_few_evaluations_and_no_numbers() -> None:
    adapters = references.adapters_of(SHAPE, (1, 2, 3))
    with pytest.raises(LorascopeError, match=r"evaluations: too few evaluations .*more than 4 for 3 adapters"):
        learn_weights(adapters, lambda _: 0.0, evaluations=4)
    with pytest.raises(LorascopeError, match="the loss is not a finite number"):
        learn_weights(adapters, lambda _: float("nan"))
