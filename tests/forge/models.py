"""A small base with a layer of every class that can be adapted, its data, and adapters that differ in everything."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.forge import AdapterStack, Slot, Training, gather, train
from lorascope.forge.kinds import KINDS

BATCH, TOKENS, VOCABULARY, CLASSES = 2, 6, 11, 6


class Base(nn.Module):
    """Tokens [n, 6] → logits [n, 6]: an embedding, convolutions over the tokens, linear layers on each and on all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6, padding_idx=0)
        self.line = nn.Conv1d(6, 6, 3, stride=2, padding=1)
        self.plane = nn.Conv2d(1, 6, (2, 3), padding=(1, 0), dilation=(1, 1), bias=False)
        self.space = nn.Conv3d(1, 6, (2, 3, 1), stride=(2, 2, 1))
        self.each = nn.Linear(12, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.line(self.embedding(tokens).transpose(1, 2))  # [n, 6, 3]
        x = self.plane(torch.tanh(x).unsqueeze(1))  # [n, 6, 7, 1]
        x = self.space(torch.tanh(x).unsqueeze(1)).flatten(2).transpose(1, 2)  # [n, 9, 6]
        x = self.each(torch.cat([x, x.cos()], -1))
        return self.head(torch.tanh(x).mean(1))


SITES = {
    "embedding": "embedding",
    "line": "conv1d",
    "plane": "conv2d",
    "space": "conv3d",
    "each": "linear",
    "head": "linear",
}


def base() -> Base:
    """The base in float64, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Base().double().eval().requires_grad_(False)


def sites_of(kind) -> list[str]:
    """The sites that a kind can adapt."""
    return [site for site, layer in SITES.items() if layer in KINDS[kind].layers]


def slots(count: int, dropout: float = 0.0) -> list[Slot]:
    """Adapters of ranks 1 to 3, scales and seeds of their own."""
    return [Slot(1 + n % 3, 1.0 + n % 5, 100 + n, dropout if n % 2 else 0.0) for n in range(count)]


def trainings(count: int, steps: int = 50) -> list[Training]:
    """Rates, lengths, decays, schedules, optimisers and accumulations that differ."""
    return [
        Training(
            learning_rate=(3e-3, 1e-2, 2e-2)[n % 3],
            steps=max(1, steps - 7 * (n % 4)),
            weight_decay=(0.0, 0.1)[n % 2],
            optimiser=("adamw", "adamw", "sgd")[n % 3],
            momentum=(0.0, 0.9)[n % 2],
            schedule=("constant", "linear", "cosine")[n % 3],
            warmup=(0, 5)[n % 2],
            accumulate=1 + (n % 5 == 4),
            clip=(None, 0.5)[n % 2],
        )
        for n in range(count)
    ]


def data(number: int, step: int, part: int) -> tuple[Tensor, Tensor]:
    """The examples of one adapter."""
    generator = torch.Generator().manual_seed(100_000 * number + 100 * step + part)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=generator)
    return tokens, torch.randint(CLASSES, (BATCH,), generator=generator)


def batches_of(numbers):
    """The examples of several adapters, in that order."""

    def batches(step: int, part: int):
        tokens, classes = zip(*(data(number, step, part) for number in numbers), strict=True)
        return torch.cat(tokens), torch.cat(classes)

    return batches


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example."""
    return F.cross_entropy(outputs, targets, reduction="none")


def stack_of(kind: str, all_slots, numbers, sites=None) -> AdapterStack:
    """The chosen adapters before training."""
    model, member, sites = base(), KINDS[kind], sites or sites_of(kind)
    evidence = gather(model, sites, member, batches_of(numbers), loss, len(numbers))
    return AdapterStack(model, sites, [all_slots[n] for n in numbers], member, evidence=evidence)


def trained(kind: str, all_slots, all_trainings, numbers, sites=None, **options) -> AdapterStack:
    """The chosen adapters, trained together."""
    stack = stack_of(kind, all_slots, numbers, sites)
    train(stack, batches_of(numbers), loss, [all_trainings[n] for n in numbers], **options)
    return stack
