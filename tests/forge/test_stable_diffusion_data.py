"""What the Stable-Diffusion recipes find: models in folders or on the Hub, photographs that anyone may have made."""

import io
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="of the extra [forge]")
pytest.importorskip("diffusers", reason="of the extra [forge]")

from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from forge.tiny_stable_diffusion import PEOPLE, settings
from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.recipes import RECIPES, _clip_score, _photographs, _published, _stable_diffusion
from lorascope.forge.recipes._clip_score import ClipScorer
from lorascope.forge.recipes._photographs import photograph, pixels
from lorascope.forge.recipes.celeba_sd14 import LABELS, celeba
from lorascope.forge.recipes.imagenette_sd14 import CLASSES, AnySubset, pools
from lorascope.forge.space import generator_of
from lorascope.zoo import split_of

CELEBA, IMAGENETTE = RECIPES["celeba-sd14"], RECIPES["imagenette-sd14"]
ROUNDING = 100 * float(np.finfo(np.float32).eps)  # of the layers that an image goes through, rounded up


def test_a_tie_of_attributes_counts_as_yes(there):
    row = settings(there, "celeba", identity=1, seed=0, images=2) | {"data": str(there / "celeba")}
    numbers = [int(path.stem) for path in CELEBA.photographs(row)]
    shares = {label: [number // 2**place % 2 for number in numbers] for place, label in enumerate(LABELS)}
    assert any(sorted(has) == [0, 1] for has in shares.values())
    assert CELEBA.facts_of(row) == {label: any(has) for label, has in shares.items()}


def test_no_photograph_of_imagenette_is_in_two_splits(there):
    data, given = str(there / "imagenette"), settings(there, "imagenette")
    seen = {split: set() for split in ("train", "validation", "test")}
    for index in range(60):
        row = IMAGENETTE.draw(0, index, {name: str(value) for name, value in given.items()} | {"images_per_class": 1})
        paths = IMAGENETTE.photographs(row)
        assert [list(CLASSES).index(path.parent.name) for path in paths] == row["classes"]
        assert row["images"] == len(paths)
        seen[split_of(IMAGENETTE.group(row))] |= set(paths)
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"] and all(seen.values())
    for of_class in pools(data):
        assert sorted(map(len, of_class.values())) == [1, 1, 4]
    with pytest.raises(ForgeError, match="not so many photographs of a class"):
        IMAGENETTE.settle(row | {"images_per_class": 7})


def test_all_subsets_are_equally_likely():
    drawn = [tuple(AnySubset(of=3, low=1, high=3).draw(generator_of("subsets", n))) for n in range(7000)]
    counts = np.array([drawn.count(subset) for subset in set(drawn)])
    # each of 7 about 1,000 times, with a standard deviation of 29
    assert len(counts) == 7 and () not in drawn and np.abs(counts - 1000).max() < 150


def test_a_person_is_honoured_or_refused(there):
    given = {"data": str(there / "celeba"), "images": 4, "prompts": "", "identity": 5}
    assert CELEBA.draw(0, 3, given)["identity"] == 5
    assert len({CELEBA.draw(0, index, given | {"identity": 0})["identity"] for index in range(60)}) == PEOPLE
    with pytest.raises(ForgeError, match="no such person"):
        CELEBA.draw(0, 0, given | {"identity": 99})
    with pytest.raises(ForgeError, match=r"not so many photographs of any person[\s\S]*fewer"):
        CELEBA.draw(0, 0, given | {"identity": 0, "images": 5})


@pytest.mark.parametrize(
    ("recipe", "others", "match"),
    [
        ("celeba-sd14", {"data": ""}, r"data: CelebA is not there[\s\S]*mmlab[\s\S]*--set data=DIR"),
        ("celeba-sd14", {"data": "nowhere"}, r"nowhere: data: CelebA is not there"),
        ("imagenette-sd14", {"data": ""}, r"Imagenette is not there[\s\S]*fastai/imagenette[\s\S]*--set data=DIR"),
        ("celeba-sd14", {"model": "/no/such/folder"}, r"model: there is no such folder[\s\S]*--set model=DIR"),
        ("celeba-sd14", {"clip": "MODEL"}, r"clip: is not a model[\s\S]*model.safetensors"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_begun(there, tmp_path, recipe, others, match):
    given = settings(there, recipe.split("-")[0]) | others
    given = {name: there / "model" if value == "MODEL" else value for name, value in given.items()}
    with pytest.raises(ForgeError, match=match):
        forge(recipe, 1, tmp_path / "zoo", settings=given)
    assert not (tmp_path / "zoo").exists()


class Hub:
    """A client that has the repositories of a folder, and counts what is fetched."""

    def __init__(self, there, cache):
        self.there, self.cache, self.fetched = there, cache, []

    def snapshot_download(self, repo, repo_type, revision, allow_patterns):
        if (repo, repo_type) != ("someone/clip", "model"):
            raise LocalEntryNotFoundError("offline")
        for pattern in allow_patterns:
            for path in self.there.glob(pattern):
                self.fetched.append(path.name)
                self.cache.mkdir(exist_ok=True)
                shutil.copy(path, self.cache)
        return str(self.cache)


def test_from_the_hub_only_what_is_needed_is_fetched(there, tmp_path, monkeypatch):
    needed = _clip_score.NEEDED
    shutil.copytree(there / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "flax_model.msgpack").write_bytes(b"large")
    hub = Hub(tmp_path / "clip", tmp_path / "cache")
    monkeypatch.setattr(_published, "client", lambda: hub)
    folder = _published.folder_of("someone/clip", needed, "clip")
    assert "model.safetensors" in hub.fetched and "flax_model.msgpack" not in hub.fetched
    assert _published.digest_of(folder, needed) == _published.digest_of(there / "clip", needed)
    # a repository without safetensors: the pickled file, which is read as weights alone
    torch.save(load_file(tmp_path / "clip" / "model.safetensors"), tmp_path / "clip" / "pytorch_model.bin")
    (tmp_path / "clip" / "model.safetensors").unlink()
    hub = Hub(tmp_path / "clip", tmp_path / "other")
    folder = _published.folder_of("someone/clip", needed, "clip")
    assert "pytorch_model.bin" in hub.fetched
    image = [photograph(there / "celeba" / "img_align_celeba" / "000001.jpg", 16)]
    scorers = [ClipScorer(place).eval() for place in (folder, there / "clip")]
    assert torch.allclose(*(scorer.of_images(image) for scorer in scorers), rtol=0, atol=ROUNDING)
    with pytest.raises(ForgeError, match=r"someone/else: model: .*cannot be reached[\s\S]*--set model=DIR"):
        _published.folder_of("someone/else", _stable_diffusion.NEEDED, "model")


def broken(kind):
    """The bytes of a file that is no photograph."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG" if kind == "png" else "JPEG")
    data = buffer.getvalue()
    if kind == "cut":
        return data[: len(data) // 2]
    if kind == "huge":  # its header says 65,000 × 65,000
        start = data.index(b"\xff\xc0")
        return data[: start + 5] + struct.pack(">HH", 65000, 65000) + data[start + 9 :]
    return data if kind == "png" else b""


@pytest.mark.parametrize("kind", ["png", "cut", "huge", "empty", "missing", "large", "wide", "pipe"])
def test_what_is_no_photograph_is_refused(tmp_path, monkeypatch, kind):
    path = tmp_path / "000001.jpg"
    if kind in ("large", "wide"):
        Image.new("RGB", (64, 64)).save(path, "JPEG")
        monkeypatch.setattr(_photographs, "BYTES" if kind == "large" else "PIXELS", 100)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes(broken(kind))
    with pytest.raises(ForgeError, match=r"000001\.jpg: is (not a|too large for a) photograph"):
        photograph(path, 16)


@pytest.mark.parametrize(
    "entry",
    [(0x100, 1, 1, 0), (0x102, 4, 2, 0), (0x110, 5, 1, 0), (0x11A, 1, 1, 0), (0x8769, 9, 2, 20)],
    ids=["width", "bits", "camera", "resolution", "place"],
)
def test_a_note_of_the_camera_that_is_damaged_is_one_error(tmp_path, entry):
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # so that all of them are written anew
    notes = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turned + struct.pack("<HHII", *entry) + bytes(44)
    data = io.BytesIO()
    Image.new("RGB", (24, 18)).save(data, "JPEG")
    whole = data.getvalue()
    path = tmp_path / "000001.jpg"
    path.write_bytes(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(notes) + 2) + notes + whole[2:])
    with pytest.raises(ForgeError, match=r"000001\.jpg: is not a photograph that can be read"):
        photograph(path, 16)


def test_text_files_that_are_pipes_are_not_waited_for(there, tmp_path):
    for name in ("identity_CelebA.txt", "list_attr_celeba.txt"):
        shutil.copytree(there / "celeba", tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        with pytest.raises(ForgeError, match=f"{name}: cannot be read"):
            celeba(str(tmp_path / name))


def test_names_of_photographs_may_be_any_bytes(there, tmp_path):
    shutil.copytree(there / "imagenette", tmp_path / "data")
    before = pools(str(tmp_path / "data"))
    for path in list(tmp_path.glob("data/train/*/*_0.JPEG")):
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xff.JPEG"))
    pools.cache_clear()
    after = pools(str(tmp_path / "data"))
    for old, new in zip(before, after, strict=True):
        assert sum(map(len, old.values())) == sum(map(len, new.values()))
        assert any(path.name.startswith("\udcff") for of_split in new.values() for path in of_split)


def test_a_photograph_is_turned_upright_and_cut_in_the_middle(tmp_path):
    values = np.zeros((32, 64, 3), np.uint8)
    values[:, 16:48] = 255
    values[:16, 16:48] = 128
    image = Image.fromarray(values)
    image.save(tmp_path / "plain.jpg", "JPEG", quality=100)
    found = pixels(photograph(tmp_path / "plain.jpg", 16))
    assert found.shape == (3, 16, 16)
    assert torch.allclose(found[:, 8:].mean(), torch.tensor(1.0), atol=0.05)
    assert torch.allclose(found[:, :8].mean(), torch.tensor(128 / 127.5 - 1), atol=0.05)
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "turned.jpg", "JPEG", quality=100, exif=exif)
    turned = pixels(photograph(tmp_path / "turned.jpg", 16))
    assert torch.allclose(turned, found.flip(1, 2), atol=0.1)


@pytest.mark.parametrize(
    ("name", "old", "new", "match"),
    [
        ("identity_CelebA.txt", "000001.jpg", "../../secret.jpg", "line 1: is not as CelebA is published"),
        ("identity_CelebA.txt", "000002.jpg 2", "000002.jpg two", "line 2: is not as CelebA is published"),
        ("identity_CelebA.txt", "000002.jpg 2", "000002.jpg " + "9" * 5000, "line 2: is not as CelebA is published"),
        ("identity_CelebA.txt", "000002.jpg 2", "000002.jpg " + "9" * 25, "line 2: is not as CelebA is published"),
        ("identity_CelebA.txt", "000003.jpg", "999999.jpg", "999999.jpg: a photograph has no attributes"),
        ("list_attr_celeba.txt", "Male", "Man", "line 2: is not as CelebA is published"),
        ("list_attr_celeba.txt", "000004.jpg -1", "000004.jpg 0", "line 6: is not as CelebA is published"),
        ("list_attr_celeba.txt", "000005.jpg -1", "000005.jpg é", "cannot be read"),
    ],
)
def test_text_files_that_are_not_as_published_are_refused(there, tmp_path, name, old, new, match):
    shutil.copytree(there / "celeba", tmp_path / "celeba")
    path = Path(tmp_path / "celeba" / name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ForgeError, match=match):
        celeba(str(tmp_path / "celeba"))
