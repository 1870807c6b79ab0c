"""The state of PyTorch under which a seed gives the same bits: one thread, denormals flushed.

Sums over several threads depend on how many there are. Denormals are flushed for speed: Adam's squares of tiny
gradients are ten times slower otherwise. Both are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread and flushed denormals inside, what there was before outside.

    >>> before = torch.get_num_threads()
    >>> with deterministic():
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    threads = torch.get_num_threads()
    # PyTorch tells nobody whether denormals are flushed, so one is tried; a product, as constants may be folded
    flushed = bool((torch.full((1,), 1e-40) * torch.ones(1) == 0).item())
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)
