"""A warning that comes from lorascope is an error under pytest; other packages' are not."""

import warnings

import pytest

CODE = compile("import warnings; warnings.warn('a trap', RuntimeWarning, stacklevel=1)", "somewhere", "exec")


def test_warnings_from_the_package_are_errors():
    with pytest.raises(RuntimeWarning, match="a trap"):
        exec(CODE, {"__name__": "lorascope.symmetry.cores"})


def test_warnings_from_elsewhere_are_not():
    with warnings.catch_warnings(record=True) as caught:
        exec(CODE, {"__name__": "elsewhere"})
    assert [str(warning.message) for warning in caught] == ["a trap"]
