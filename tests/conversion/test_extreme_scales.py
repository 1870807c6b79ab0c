"""Scales at the ends of a dtype's range: the result is right, or an error names the site; nothing warns."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import LowRank
from lorascope.conversion import convert
from lorascope.errors import AdapterError
from lorascope.formats import Format
from lorascope.formats.folding import times, widened_times
from written_formats import WRITTEN, adapter_of, names_for, target_in


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e-40, 1e30, 1e40, 1e200, 1e308])
@pytest.mark.parametrize("member", WRITTEN.values(), ids=lambda member: member.name)
def test_it_is_written_or_refused_with_the_name_of_the_site(member: Format, scale: float, tmp_path: Path) -> None:
    site = names_for(member)[0]
    cases = itertools.product((np.float16, np.float64), (None, "float16"), (False, True))
    for number, (dtype, asked, is_folded) in enumerate(cases):
        big = LowRank(np.full((4, 2), 30, dtype), np.full((2, 4), 30, dtype), scale)
        options: dict[str, Any] = {"dtype": asked, "is_scale_folded": is_folded}
        target = target_in(tmp_path, member, str(number))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                report = convert(adapter_of({site: big}), target, to=member.name, **options)
            except AdapterError as error:
                assert site in str(error), (dtype, asked, is_folded)
                assert not target.exists()
                continue
            (written,) = formats.read(target, format=member.name).values()
        assert report.relative_error < 1e-2
        np.testing.assert_allclose(written.norm(), big.norm(), rtol=1e-2)


@pytest.mark.parametrize("product", [times, widened_times])
def test_a_product_beyond_the_range_is_an_error_and_no_infinity(product: Any) -> None:
    with pytest.raises(AdapterError, match="beyond the range of float64"):
        product(np.full(2, 1e10), 1e300)
    with pytest.raises(AdapterError, match="too large"):
        product(np.full(2, 1e10, np.float32), 1e38)
