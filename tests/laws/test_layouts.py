"""Laws of the layouts of published zoos: each is told from all others, and its adapters come in whole and in groups."""

import hashlib

import numpy as np
import pytest

import lorascope
from lorascope.errors import ZooError
from lorascope.zoo import LAYOUTS, SPLITS, Zoo, import_published, verify_zoo
from lorascope.zoo.published import recognised
from lorascope.zoo.tree import Tree
from published_zoos import NEEDS_OUT, SAMPLES, made


def content(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_layout_has_a_sample_and_says_what_it_is():
    assert {name for name, _ in SAMPLES} == set(LAYOUTS.names())
    for member in LAYOUTS:
        assert member.name in LAYOUTS.names()
        assert "arXiv" in member.reference and member.unknown and member.documented and member.files


@pytest.mark.parametrize("sample", SAMPLES, ids="-".join)
def test_a_folder_has_one_layout(sample, tmp_path):
    tree = Tree(made(sample, tmp_path / "in"))
    spoken = [(member.name, variant) for member in LAYOUTS for variant in member.recognise(tree)]
    assert spoken == [sample]
    assert recognised(tree)[0].name == sample[0]
    other = next(name for name in LAYOUTS.names() if name != sample[0])
    with pytest.raises(ZooError, match=f"does not have the layout {other}"):
        recognised(tree, other)


@pytest.mark.parametrize("sample", SAMPLES, ids="-".join)
def test_the_zoo_is_whole_and_its_source_is_left_as_it_was(sample, tmp_path):
    source = made(sample, tmp_path / "in")
    before = content(source)
    report = import_published(source, out=tmp_path / "zoo")
    assert (report.layout, report.variant, dict(report.unreadable), report.missing) == (*sample, {}, ())
    assert content(source) == before
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(zoo) == report.count > 2 or sample == ("w2t", "celeba")
    assert not verify_zoo(tmp_path / "zoo").defects
    assert len({row["sha256"] for row in zoo.rows()}) == len(zoo)
    for row in zoo.rows():
        adapter = lorascope.read(zoo.adapter_path(row))
        assert adapter.norm() > 0 and row["base"] == (adapter.provenance.base_model or zoo.rows()[0]["base"])
    assert zoo.labels() and zoo.header["layout"]["name"] == sample[0]


@pytest.mark.parametrize("sample", SAMPLES, ids="-".join)
def test_no_group_is_on_two_sides(sample, tmp_path):
    import_published(made(sample, tmp_path / "in"), out=tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    for salt in ("", "1", "2"):
        sides = [{row["group"] for row in zoo.split(name, salt)} for name in SPLITS]
        assert sum(map(len, sides)) == len(set.union(*sides)) == len({row["group"] for row in zoo.rows()})


@pytest.mark.parametrize("sample", SAMPLES, ids="-".join)
def test_in_place_where_files_are_read_as_they_lie(sample, tmp_path):
    source = made(sample, tmp_path / "in")
    if sample in NEEDS_OUT:
        before = content(source)
        with pytest.raises(ZooError, match="add --out"):
            import_published(source)
        assert content(source) == before
        return
    import_published(source)
    import_published(source, out=tmp_path / "zoo")
    there, here = (Zoo.open(folder) for folder in (tmp_path / "zoo", source))
    for one, other in zip(there.rows(), here.rows(), strict=True):
        assert {**one, "path": None} == {**other, "path": None}
        assert (source / other["path"]).exists()


@pytest.mark.parametrize("sample", SAMPLES, ids="-".join)
def test_what_stops_halfway_leaves_nothing(sample, tmp_path):
    source = made(sample, tmp_path / "in")

    def stopped(entries, count):
        for number, entry in enumerate(entries):
            if number == 1:
                raise KeyboardInterrupt
            yield entry

    with pytest.raises(KeyboardInterrupt):
        import_published(source, out=tmp_path / "zoo", track=stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("sample", [key for key in SAMPLES if key[0] not in ("lora-wise",) and key[1] != "rows"])
def test_a_damaged_adapter_is_named_and_the_others_go_on(sample, tmp_path):
    source = made(sample, tmp_path / "in")
    weights = sorted([*source.rglob("*.safetensors"), *source.rglob("*.bin")])
    weights[0].write_bytes(b"\x00" * 40)
    report = import_published(source, out=tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(report.unreadable) == 1 and report.count == len(weights)
    assert len(zoo.rows()) == len(weights) - 1
    bad = [row for row in zoo.rows(only_usable=False) if row["status"] != "ok"]
    assert [row["id"] for row in bad] == list(report.unreadable)


def test_a_folder_of_two_layouts_is_called_so(tmp_path):
    source = made(("padbench", "adapters"), tmp_path / "in")
    SAMPLES["lots-of-loras", "tasks"](source)
    with pytest.raises(ZooError, match=r"more than one layout.*lots-of-loras.*padbench"):
        import_published(source)


def test_no_layout_lists_the_layouts(tmp_path):
    (tmp_path / "adapters/a").mkdir(parents=True)
    with pytest.raises(ZooError, match=r"no layout that is known.*lol:.*weights2weights:") as caught:
        import_published(tmp_path / "adapters")
    assert "--labels" in str(caught.value)
    with pytest.raises(lorascope.errors.LorascopeError, match="did you mean 'padbench'"):
        import_published(tmp_path / "adapters", layout="padbnch")


def test_numbers_are_those_of_the_files(tmp_path):
    """A row of a table becomes the product that its numbers make, in whichever of the two forms it is stored."""
    from published_zoos import factors, lora_wise

    for nested in (False, True):
        lora_wise(tmp_path / f"in{nested}", nested=nested)
        import_published(tmp_path / f"in{nested}", out=tmp_path / f"zoo{nested}")
        zoo = Zoo.open(tmp_path / f"zoo{nested}")
        row = next(row for row in zoo.rows() if row["images"] == "toy_unicorn" and row["dataset_size"] == 6)
        update = lorascope.read(zoo.adapter_path(row))["unet.mid.attn1.to_q"]
        B, A = factors(106)
        assert update.scale == 1 and update.B.dtype == np.float32
        np.testing.assert_array_equal(update.B, B)
        np.testing.assert_array_equal(update.A, A)
