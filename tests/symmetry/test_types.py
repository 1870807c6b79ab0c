"""Feature types as values."""

import pytest

from lorascope.symmetry import FeatureType


def test_types_are_values():
    assert FeatureType(out=2, in_=1) == FeatureType(2, 1) != FeatureType(1, 2)
    assert len({FeatureType(inv=3), FeatureType(inv=3)}) == 1


@pytest.mark.parametrize(
    ("type_", "text"),
    [(FeatureType(), "0"), (FeatureType(3, 2, 8), "3×out ⊕ 2×in ⊕ 8×inv"), (FeatureType(inv=1), "1×inv")],
)
def test_types_print(type_, text):
    assert str(type_) == text


def test_negative_multiplicities_are_refused():
    with pytest.raises(ValueError, match="no negative"):
        FeatureType(out=-1)


def test_invariance():
    assert FeatureType(inv=2).is_invariant and not FeatureType(in_=1).is_invariant
