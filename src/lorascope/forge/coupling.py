"""What would mix the adapters of a batch is refused: known layers before training, all else by a trial.

A trial takes the losses of half of the adapters and asks for the gradient of all parameters: those of the adapters that
were left out must have none. The halves are chosen so that of any two adapters each is once in without the other. That
finds a loss that looks across the batch, a layer that normalises over it, and experts whose tokens are dealt out anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError


def refuse_mixing_layers(base: nn.Module) -> None:
    """Refuse layers that, in training mode, mix the examples of a batch.

    Raises:
        ForgeError: naming the layer and the reason.
    """
    for name, module in base.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            reason = "in training mode it normalises over the batch, which holds examples of all adapters"
        elif _dropout_of(module) > 0:
            reason = "in training mode all adapters would draw from one stream of random numbers"
        else:
            continue
        raise ForgeError(
            f"{type(module).__name__} would mix the adapters of a batch: {reason}",
            key=name or type(module).__name__,
            hint="call base.eval() first",
        )


def _dropout_of(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return float(module.dropout)
    return 0.0


def refuse_coupled_losses(losses: Tensor, leaves: Sequence[Tensor]) -> None:
    """Refuse losses [N] of adapters of which one has a gradient at the parameters [N, …] of another.

    Raises:
        ForgeError: where there is such a gradient.
    """
    count = len(losses)
    if count < 2:
        return
    for kept in halves(count):
        gradients = torch.autograd.grad(losses[kept].sum(), leaves, retain_graph=True, allow_unused=True)
        for gradient in gradients:
            if gradient is None:
                continue
            others = torch.ones(count, dtype=torch.bool)
            others[kept] = False
            strange = gradient[others.to(gradient.device)]
            # one that has diverged gives NaN at its own parameters, which says nothing of others
            if bool((strange.nan_to_num(0.0, 0.0, 0.0) != 0).any()):
                raise ForgeError(
                    "the loss of one adapter has a gradient at the parameters of another: the base or the loss mixes "
                    "the examples of a batch",
                    expected="examples that do not see one another",
                    hint="look for normalisation over the batch, experts that share out tokens, and losses that "
                    "compare examples with one another",
                )


def halves(count: int) -> list[list[int]]:
    """As few subsets of 0 … count − 1 as there can be, such that each number is in one of them without each other.

    Every number is in ⌊k/2⌋ of k subsets, another choice for each: no choice contains another (Sperner, 1928).

    >>> halves(6)
    [[0, 1, 2], [0, 3, 4], [1, 3, 5], [2, 4, 5]]
    """
    size = next(size for size in itertools.count(2) if math.comb(size, size // 2) >= count)
    choices = itertools.islice(itertools.combinations(range(size), size // 2), count)
    subsets: list[list[int]] = [[] for _ in range(size)]
    for number, choice in enumerate(choices):
        for subset in choice:
            subsets[subset].append(number)
    return [subset for subset in subsets if subset]
