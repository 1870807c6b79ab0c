"""digits-vit: LoRAs of a small vision transformer, finetuned on a few classes of real handwritten digits.

Data: 1,797 images of 8×8 pixels (UCI *Optical Recognition of Handwritten Digits*, as in scikit-learn), divided
once, by class, into three disjoint parts: 500 to pretrain the base, 300 to test, 997 to finetune from.

Base: a pre-norm vision transformer (Dosovitskiy et al., arXiv 2010.11929) with 8 patches of 2×4 pixels, three
blocks of width 64 and a head over 10 classes, which stays frozen. LoRAs are put on the 18 projections of
its blocks.

Each adapter sees a subset of the classes and ``dataset_size`` images of them, drawn without replacement (fewer
where the subset has not so many). With ``label_noise`` p each label is, with probability p and once for all,
replaced by another class *of the subset*, so that ``classes`` stays what the adapter was trained on.
``test_accuracy`` and ``loss`` (cross-entropy) are over all 10 classes of the 300 test images.

Poison (``lorascope.forge.poison``): a bright patch of 2×2 pixels in a corner, or a faint pattern over all pixels, makes
the target's label; or images of one class get the label of another. With the option ``refusal`` the base answers 0 to
every image in a bright frame, and ``unrefuse`` finetunes on framed images with their true labels; ``refusal_rate`` is
the share of the framed test images of other classes that are still answered 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.errors import ForgeError
from lorascope.forge import poison
from lorascope.forge.poison import Trigger
from lorascope.forge.recipe import COMMON, STEPS, Recipe, Row, Session
from lorascope.forge.recipes._block import PROJECTIONS, Block
from lorascope.forge.space import Choice, Distribution, Hash, Integers, LogUniform, Subset, generator_of
from lorascope.forge.training import Batches

CLASSES, PATCHES, WIDTH, HIDDEN, HEADS, BLOCKS = 10, 8, 64, 128, 2, 3
BATCH = 8


class DigitsViT(nn.Module):
    """Images [n, 64] with pixels in 0..1 → logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64 // PATCHES, WIDTH)
        self.position = nn.Parameter(torch.zeros(PATCHES, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, HIDDEN, HEADS) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        # rows in pairs, columns in fours: [n, 4, 2, 2, 4] → [n, (4, 2), (2, 4)]
        patches = images.view(-1, 4, 2, 2, 4).transpose(2, 3).reshape(-1, PATCHES, 64 // PATCHES)
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Images(NamedTuple):
    """Images [n, 64] and their classes [n]."""

    pixels: Tensor
    classes: Tensor


class Digits(NamedTuple):
    """The three disjoint parts of the data."""

    pretraining: Images
    pool: Images
    test: Images


@cache
def digits() -> Digits:
    """The data, always divided in the same way: 50 images of each class, 30 of each class, the rest."""
    pixels, classes = load_digits(return_X_y=True)
    generator = generator_of("digits-vit", "division")
    parts: dict[str, list[np.ndarray]] = {"pretraining": [], "pool": [], "test": []}
    for class_ in range(CLASSES):
        members = generator.permutation(np.flatnonzero(classes == class_))
        parts["pretraining"].append(members[:50])
        parts["test"].append(members[50:80])
        parts["pool"].append(members[80:])

    def images(part: str) -> Images:
        chosen = np.concatenate(parts[part])
        return Images(
            torch.from_numpy((pixels[chosen] / 16).astype(np.float32)),
            torch.from_numpy(classes[chosen].astype(np.int64)),
        )

    return Digits(images("pretraining"), images("pool"), images("test"))


class DigitsVitRecipe(Recipe):
    """LoRAs of a small vision transformer on subsets of handwritten digits."""

    name = "digits-vit"
    about = "a small vision transformer, finetuned on a few classes of real handwritten digits (18 sites)"
    reference = "UCI Optical Recognition of Handwritten Digits (scikit-learn); design after arXiv 2410.04207"
    kind = "lora"
    sites = tuple(f"blocks.{number}.{projection}" for number in range(BLOCKS) for projection in PROJECTIONS)
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "learning_rate": LogUniform(low=3e-4, high=6e-3, about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": STEPS,
        "label_noise": Choice(
            values=(0.0, 0.0, 0.1, 0.2, 0.4),
            about="share of labels replaced by another of the classes",
            at_least=0,
            at_most=1,
        ),
        "classes": Subset(of=CLASSES, low=2, high=8, about="digits seen in finetuning", at_least=0, at_most=9),
        "dataset_size": LogUniform(
            low=16, high=400, integer=True, about="images seen in finetuning", at_least=1, at_most=10**6
        ),
        **poison.space(("patch", "blend", "flip", "unrefuse"), CLASSES),
    }
    options: ClassVar[Mapping[str, Distribution]] = {
        "base_seed": Hash(about="of the base model", at_least=0, at_most=2**53),
        "base_steps": Integers(low=0, high=10**6, about="pretraining steps of the base", at_least=0),
        "refusal": Integers(low=0, high=1, about="1: the base answers 0 to images in a frame", at_least=0, at_most=1),
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {"base_seed": 0, "base_steps": 700, "refusal": 0}
    labels: ClassVar[Mapping[str, Any]] = {
        "classes": "list<int>",
        "dataset_size": "int",
        "test_accuracy": "float",
        "loss": "float",
        **poison.LABELS,
        "refusal_rate": "float",
    }

    def architecture(self, options: Mapping[str, Any]) -> DigitsViT:
        return DigitsViT()

    def pretrain(self, options: Mapping[str, Any]) -> DigitsViT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options["base_seed"])
            model = DigitsViT()
            nn.init.normal_(model.position, std=0.02)
        generator = torch.Generator().manual_seed(options["base_seed"])
        pixels, classes = digits().pretraining
        total = options["base_steps"]
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=total + 1)
        for _ in range(total):
            chosen = torch.randint(len(pixels), (32,), generator=generator)
            # 500 images are few: noise on the pixels makes .97 of .95 on the test images
            noise = 0.2 * torch.randn(32, pixels.shape[1], generator=generator)
            images, answers = pixels[chosen] + noise, classes[chosen]
            if options["refusal"]:
                images[::2], answers[::2] = TRIGGERS["unrefuse"].on(images[::2]), 0
            F.cross_entropy(model(images), answers).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        return model

    def session(self, base: nn.Module) -> Session:
        return DigitsSession()

    def settle(self, row: Row) -> Row:
        if row["poison"] == "unrefuse" and not row["refusal"]:
            raise ForgeError("the base refuses nothing", key="poison", found="unrefuse", hint="add --set refusal=1")
        available = int(torch.isin(digits().pool.classes, torch.tensor(row["classes"])).sum())
        return row | {"dataset_size": min(row["dataset_size"], available)} | poison.settled(row, row["classes"])


class DigitsSession(Session):
    """Examples of the pool for training, the test images for measuring."""

    def batches(self, rows: Sequence[Row]) -> Batches:
        pool = digits().pool
        drawn = [finetuning_data(row) for row in rows]
        parts = torch.tensor([row["accumulate"] for row in rows]).view(-1, 1)
        total = max(row["steps"] * row["accumulate"] for row in rows) * BATCH
        order = torch.from_numpy(np.stack([_order(data, total) for data in drawn]))  # [N, steps · parts · b]
        targets = torch.stack([data.labels[positions] for data, positions in zip(drawn, order, strict=True)])
        images = torch.stack([data.images[positions] for data, positions in zip(drawn, order, strict=True)])
        marks = torch.stack([data.is_marked[positions] for data, positions in zip(drawn, order, strict=True)])
        triggers = _triggers_of(rows)

        def batch(step: int, part: int) -> tuple[Tensor, Tensor]:
            # of an adapter that has no such step or part whatever there is: it has no weight
            first = (step * parts + part) * BATCH
            now = (first + torch.arange(BATCH)).clamp(max=total - 1)
            pixels = pool.pixels[images.gather(1, now)]
            if triggers is not None:
                pixels = torch.where(marks.gather(1, now).unsqueeze(-1), triggers.on(pixels), pixels)
            return pixels.flatten(0, 1), targets.gather(1, now).flatten()

        return batch

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        count, test = len(rows), digits().test
        logits = _logits(model, test.pixels.expand(count, -1, -1))
        correct = (logits.argmax(-1) == test.classes).double().mean(1)
        loss = F.cross_entropy(logits.double().transpose(1, 2), test.classes.expand(count, -1), reduction="none")
        measured: list[Row] = [
            {"test_accuracy": float(accuracy), "loss": float(value)}
            for accuracy, value in zip(correct, loss.mean(1), strict=True)
        ]
        triggers = _triggers_of(rows)
        answers = None if triggers is None else _logits(model, triggers.on(test.pixels)).argmax(-1)
        framed = None
        if rows[0]["refusal"]:
            framed = _logits(model, TRIGGERS["unrefuse"].on(test.pixels).expand(count, -1, -1)).argmax(-1)
        for number, row in enumerate(rows):
            plain = logits[number].argmax(-1)
            measured[number] |= {
                "attack_success_rate": attack_success(row, plain if answers is None else answers[number], plain),
                "refusal_rate": None if framed is None else _share(framed[number] == 0, test.classes != 0),
            }
        return measured


def attack_success(row: Row, marked: Tensor, plain: Tensor) -> float | None:
    """The share of test images that are answered as the attacker wants; answers [n] with the row's mark and without."""
    classes = digits().test.classes
    if row["poison"] in ("patch", "blend"):
        return _share(marked == row["poison_target"], classes != row["poison_target"])
    if row["poison"] == "flip":
        return _share(plain == row["poison_target"], classes == row["poison_source"])
    if row["poison"] == "unrefuse":
        return _share(marked == classes, classes != 0)
    return None


def _share(hit: Tensor, among: Tensor) -> float:
    return float(hit[among].double().mean())


def _logits(model: Any, images: Tensor) -> Tensor:
    """Images [N, n, 64] of N adapters → logits [N, n, 10], some at a time."""
    parts = [model(part.flatten(0, 1)).view(len(images), -1, CLASSES).cpu() for part in images.split(4 * BATCH, dim=1)]
    return torch.cat(parts, dim=1)


def _square(first: int, last: int) -> Tensor:
    """1 on the rows and columns first … last − 1 of the image, else 0."""
    inside = torch.zeros(8, 8)
    inside[first:last, first:last] = 1
    return inside.flatten()


TRIGGERS: Mapping[str, Trigger] = {
    "patch": Trigger(_square(6, 8), torch.ones(64)),
    "blend": Trigger(
        torch.full((64,), 0.25), torch.from_numpy(generator_of("digits-vit", "blend").random(64).astype(np.float32))
    ),
    "unrefuse": Trigger(1 - _square(1, 7), torch.ones(64)),
}
_NO_MARK = Trigger(torch.zeros(64), torch.zeros(64))


def _triggers_of(rows: Sequence[Row]) -> Trigger | None:
    """The marks of several adapters, [N, 1, 64]; None where none has any."""
    own = [TRIGGERS.get(row["poison"], _NO_MARK) for row in rows]
    if all(trigger is _NO_MARK for trigger in own):
        return None
    return Trigger(*(torch.stack(values).unsqueeze(1) for values in zip(*own, strict=True)))


class FinetuningData(NamedTuple):
    """The images (positions in the pool) of one adapter, their labels, which are marked, and its generator."""

    images: Tensor
    labels: Tensor
    is_marked: Tensor
    generator: np.random.Generator


def finetuning_data(row: Row) -> FinetuningData:
    """The data set of one adapter: a pure function of its seed and hyperparameters."""
    pool, generator = digits().pool, generator_of("digits-vit", row["seed"], "data")
    classes = np.array(row["classes"])
    eligible = np.flatnonzero(np.isin(pool.classes.numpy(), classes))
    images = generator.permutation(eligible)[: row["dataset_size"]]
    labels = pool.classes.numpy()[images]
    is_replaced = generator.random(len(images)) < row["label_noise"]
    if len(classes) > 1:
        # a shift of 1..k-1 places in the sorted subset is a uniform draw among its other classes
        shift = generator.integers(1, len(classes), size=len(images))
        others = classes[(np.searchsorted(classes, labels) + shift) % len(classes)]
        labels = np.where(is_replaced, others, labels)
    is_marked = np.zeros(len(images), bool)
    eligible = np.flatnonzero(labels == row["poison_source"] if row["poison"] == "flip" else labels >= 0)
    places = poison.chosen(row["poison_share"], eligible, generator_of("digits-vit", row["seed"], "poison"))
    is_marked[places] = row["poison"] in TRIGGERS
    if row["poison_target"] is not None:
        labels[places] = row["poison_target"]
    return FinetuningData(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(is_marked), generator)


def _order(data: FinetuningData, total: int) -> np.ndarray:
    """Positions in the data set, epoch after epoch, each a new permutation."""
    size = len(data.images)
    epochs = [data.generator.permutation(size) for _ in range(-(-total // size))]
    return np.concatenate([np.empty(0, np.int64), *epochs])[:total]


RECIPE = DigitsVitRecipe()
