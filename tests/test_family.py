"""The one mechanism by which members of families are found."""

import sys

import pytest

from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.family import Family


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "somefamily"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "plain_one.py").write_text("MEMBER = 'plain'\n")
    (folder / "needy.py").write_text("import a_package_that_nobody_has.part\nMEMBER = 1\n")
    (folder / "_private.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Family("thing", "somefamily", "MEMBER", "somefamily.members", extra="forge")
    for name in [name for name in sys.modules if name.startswith("somefamily")]:
        del sys.modules[name]


def test_listing_imports_no_member(package):
    assert package.names() == ["needy", "plain-one"]
    assert "somefamily.needy" not in sys.modules


def test_a_member_is_imported_when_it_is_used(package):
    assert package["plain-one"] == "plain"


def test_an_unknown_member_names_the_nearest(package):
    with pytest.raises(LorascopeError, match=r"there is no thing 'plain-on'.*needy, plain-one") as caught:
        package["plain-on"]
    assert caught.value.hint == "did you mean 'plain-one'?"


def test_a_missing_package_names_the_extra(package):
    with pytest.raises(MissingExtraError, match="the thing needy needs a_package_that_nobody_has") as caught:
        package["needy"]
    assert "lorascope[forge]" in caught.value.hint
