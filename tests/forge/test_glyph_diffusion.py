"""glyph-diffusion: glyphs drawn right, labels that are so, and adapters and samples that do not see each other."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("matplotlib", reason="of the extra [forge]")

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from forge.shown_glyphs import nearest_of_face
from lorascope.errors import ForgeError
from lorascope.forge import forge, load_base
from lorascope.forge.cohort import train_rows
from lorascope.forge.embedding_score import embedding_score
from lorascope.forge.recipes import RECIPES, _glyph_flow, glyph_diffusion
from lorascope.forge.recipes._glyphs import (
    CHARACTERS,
    FACES,
    FINE,
    SIDE,
    coarse,
    distorted,
    drawn,
    face_named,
    glyphs,
    stroke_width,
)
from lorascope.forge.recipes.glyph_diffusion import facts_of, finetuning_data, own_glyphs, samples_of
from lorascope.formats import read
from lorascope.zoo import Zoo, split_of

NAME = "glyph-diffusion"
SETTINGS = {"base_steps": 8, "scorer_steps": 100, "steps": 3}
FINER = 16
SERIF = {"DejaVu Serif", "STIX", "STIX Mono", "Computer Modern", "Computer Modern Mono"}
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of 34 adapters in two cohorts, with short sampling; read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyph_diffusion, "SAMPLES", 2)
        patch.setattr(glyph_diffusion, "JUDGED", 4)
        patch.setattr(_glyph_flow.sample, "__defaults__", (3,))
        folder = tmp_path_factory.mktemp("glyphs") / "zoo"
        forge(NAME, 34, folder, settings=SETTINGS)
        yield Zoo.open(folder)


def state(folder):
    """The hash of every file that the zoo's content consists of."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "zoo.json", "log.jsonl")
    }


def by_pillow(face, character):
    """The glyph as another binding of FreeType draws it, [256]: sixteen times finer, where its hinting moves little."""
    path = f"{matplotlib.get_data_path()}/fonts/ttf/{face.file}.ttf"
    font = ImageFont.truetype(path, 13 * FINER, layout_engine=ImageFont.Layout.BASIC)
    page = Image.new("L", (600, 600))
    ImageDraw.Draw(page).text((150, 150), chr(face.code(character)), fill=255, font=font)
    ink = np.asarray(page.crop(page.getbbox()), np.float32) / 255
    whole = np.zeros((SIDE * FINER, SIDE * FINER), np.float32)
    top, left = ((SIDE * FINER - size) // 2 for size in ink.shape)
    whole[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return F.avg_pool2d(torch.from_numpy(whole)[None], FINER).flatten()


def test_a_glyph_is_the_one_that_pillow_draws():
    characters = "aRg"
    for face in FACES:
        ours = coarse(torch.stack([drawn(face, character) for character in characters]))
        theirs = torch.stack([by_pillow(face, character) for character in characters])
        cosines = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T
        assert (cosines.argmax(1) == torch.arange(len(characters))).all()
        # centred to half a fine pixel each way, where strokes are four wide: an overlap of seven eighths at the least
        assert (cosines.diagonal() > 7 / 8).all(), face.name
        assert ours.sum(1).tolist() == pytest.approx(theirs.sum(1).tolist(), rel=0.05)  # the same ink


def test_every_face_has_every_letter_and_no_two_faces_are_the_same():
    data = glyphs("adapters")
    assert len(data.fine) == len(FACES) * len(CHARACTERS["adapters"]) == 26 * 16
    assert len({face.name for face in FACES}) == 26
    images = coarse(data.fine)
    assert len(images.unique(dim=0)) == len(images)
    for role in CHARACTERS:
        edges = glyphs(role).fine[:, [0, -1]].abs().sum() + glyphs(role).fine[:, :, [0, -1]].abs().sum()
        assert edges == 0  # nothing is cut off


def test_base_scorer_and_adapters_share_no_letter_in_either_case():
    assert sorted("".join(CHARACTERS.values())) == sorted(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    )
    for one, other in itertools.combinations(CHARACTERS.values(), 2):
        assert not set(one.lower()) & set(other.lower())


def test_the_stroke_width_of_a_strip_is_its_width():
    canvas = torch.zeros(3, 64, 64)
    for number, width in enumerate((4, 6, 8)):
        canvas[number, 8:56, 20 : 20 + width] = 1
    expected = torch.tensor([2 * width * 48 / (2 * (width + 48)) / FINE for width in (4, 6, 8)])
    # at each of four corners the gradient is of length sqrt(1/8) on four pixels where two edges have 1/2 each
    corners = 4 * abs(4 * 0.125**0.5 - 2)
    assert torch.allclose(stroke_width(canvas), expected, rtol=corners / (2 * (4 + 48)))
    widths = {face.name: float(stroke_width(torch.stack([drawn(face, c) for c in "abdegn"])).mean()) for face in FACES}
    for face in FACES:
        if face.is_bold:
            regular = face.name.replace(" Bold", "")
            assert widths[face.name] > 1.2 * widths[regular]


def test_a_distortion_is_small_and_its_own():
    fine = glyphs("adapters").fine[:40]
    images = distorted(fine, torch.Generator().manual_seed(0))
    again = distorted(fine, torch.Generator().manual_seed(0))
    assert torch.equal(images, again) and not torch.equal(images[:20], images[20:])
    ink, before = images.clamp(min=0.15).sum(1), coarse(fine).clamp(min=0.15).sum(1)
    assert ((ink / before - 1).abs() < 0.2).all()


def test_labels_are_truthful(zoo):
    rows = zoo.rows()
    assert len(rows) == 34
    for row in rows:
        images, face = finetuning_data(row).images, face_named(row["face"])
        assert len(images) == row["images"] and 1 <= len(row["characters"]) <= 4
        assert set(nearest_of_face(images, face).tolist()) == set(row["characters"])
        assert row["stroke_width"] == pytest.approx(float(stroke_width(own_glyphs(row)).mean()))
        assert {name: row[name] for name in facts_of(row)} == facts_of(row)
        assert row["bold"] == ("Bold" in row["face"]) and row["italic"] == ("Italic" in row["face"])
        assert row["serif"] == (row["family"] in SERIF)
        assert row["monospace"] == ("Mono" in row["face"])


def test_adapters_of_a_face_are_one_group_of_one_split(zoo):
    recipe = RECIPES[NAME]
    rows = [recipe.draw(0, index, {}) for index in range(400)]
    assert len({recipe.group(row) for row in rows}) == len({row["face"] for row in rows}) == 26
    assert {row["group"] for row in zoo.rows()} == {recipe.group(row) for row in zoo.rows()}
    seen = {name: set() for name in ("train", "validation", "test")}
    for face in FACES:
        split = split_of(recipe.group({"face": face.name}))
        seen[split] |= {("serif", face.is_serif), ("bold", face.is_bold), ("italic", face.is_italic)}
        seen[split] |= {("monospace", face.is_monospace)}
    assert all(len(values) == 8 for values in seen.values())


def test_a_larger_count_extends_a_zoo_to_the_same_result(zoo, tmp_path):
    forge(NAME, 3, tmp_path / "zoo", settings=SETTINGS)
    (tmp_path / "zoo" / "base" / "model.safetensors").unlink()  # made again, and must come out the same
    forge(NAME, 34, tmp_path / "zoo", settings=SETTINGS)
    assert state(tmp_path / "zoo") == state(zoo.path)


def test_a_batch_trains_as_one_by_one(zoo):
    recipe, base = RECIPES[NAME], load_base(zoo.path)
    rows = [recipe.draw(0, index, SETTINGS) for index in range(4)]
    together = train_rows(recipe, base, rows, [True] * 4)
    masked = train_rows(recipe, base, rows, [True] + [False] * 3)
    alone = train_rows(recipe, base, rows[:1], [True])
    assert torch.equal(together.values[0], masked.values[0])
    # products of other shapes round otherwise, and Adam's m/√v turns that into a share of the step itself
    moved = rows[0]["steps"] * rows[0]["learning_rate"]
    assert (together.values[0] - alone.values[0]).abs().mean() < 1e-3 * moved


def test_samples_are_an_adapters_own_whatever_is_sampled_beside_it(zoo):
    recipe, base = RECIPES[NAME], load_base(zoo.path)
    rows = [recipe.draw(0, index, SETTINGS) for index in range(3)]
    stack = train_rows(recipe, base, rows, [True] * 3)
    with torch.no_grad():
        with stack.attached() as model:
            together = samples_of(model, rows)
        with stack.subset([1]).attached() as model:
            alone = samples_of(model, rows[1:2])
    assert torch.allclose(together[1:2], alone, rtol=0, atol=1e3 * EPS)
    assert (together[0] - together[1]).abs().mean() > 0.05


def test_peft_gives_the_same_samples_and_score(zoo):
    peft = pytest.importorskip("peft")
    row = zoo.rows()[0]
    path, base = zoo.adapter_path(row), load_base(zoo.path)
    session = RECIPES[NAME].session(base)
    with read(path).apply_to(base), torch.no_grad():
        ours = samples_of(base, [row])
    theirs = peft.PeftModel.from_pretrained(load_base(zoo.path), str(path)).eval()
    with torch.no_grad():
        samples = samples_of(theirs, [row])
        measured = session.measure(theirs, [row])[0]
        plain = samples_of(load_base(zoo.path), [row])
    # 24 layers of at most 384 products each, three steps
    tolerance = 3 * 24 * 384 * EPS
    assert (ours - samples).abs().max() < tolerance < (ours - plain).abs().max()
    assert measured["generation_score"] == pytest.approx(row["generation_score"], abs=tolerance)
    assert measured["loss"] == pytest.approx(row["loss"], rel=tolerance)


def test_the_score_tells_the_own_glyphs_from_others(zoo):
    recipe = RECIPES[NAME]
    session = recipe.session(load_base(zoo.path))
    rows = [recipe.draw(0, index, {"images": 16}) for index in range(26)]
    with torch.no_grad():
        own = [session.score(finetuning_data(row).images, row) for row in rows]
        others = [session.score(finetuning_data(rows[n - 1]).images, row) for n, row in enumerate(rows)]
        noise = [session.score(torch.rand(16, SIDE * SIDE), row) for row in rows[:3]]
    assert np.mean(own) > np.mean(others) + 0.2
    assert max(noise) < min(own)


def test_a_clip_score_goes_the_same_way():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = transformers.CLIPModel(config).eval()
        pixels = torch.randn(3, 3, 16, 16)
    tokens = torch.tensor([[0, 5, 7, 1]])
    with torch.no_grad():
        whole = clip(input_ids=tokens, pixel_values=pixels)
        score = embedding_score(whole.image_embeds, whole.text_embeds)
        expected = whole.logits_per_image.mean() / clip.logit_scale.exp()
    assert float(score) == pytest.approx(float(expected), abs=1e-5)


def test_vectors_of_two_embeddings_have_no_score():
    with pytest.raises(ForgeError, match="one embedding"):
        embedding_score(torch.ones(2, 3), torch.ones(1, 4))
    with pytest.raises(ForgeError, match="at least one"):
        embedding_score(torch.ones(0, 3), torch.ones(1, 3))
