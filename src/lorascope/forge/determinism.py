"""The state of PyTorch under which a seed gives the same bits: one thread, denormals flushed.

Sums over several threads depend on how many there are. Denormals are flushed for speed: Adam's squares of tiny
gradients are ten times slower otherwise. On other devices PyTorch is asked for algorithms that give the same bits, and
warns where it has none. All is put back afterwards.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def deterministic(device: torch.device | None = None) -> Iterator[None]:
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
    _keep_freed_memory()
    is_strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    is_rough = torch.backends.cudnn.allow_tf32
    if device is not None and device.type != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as it is for products
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_strict, warn_only=only_warns)
        torch.backends.cudnn.allow_tf32 = is_rough
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)


_KEPT = 1 << 28  # bytes at the end of the heap that are not given back


@cache
def _keep_freed_memory() -> None:
    """Let freed tensors be taken again without asking the system: fresh pages cost a tenth of a step.

    A setting of glibc's allocator, for the rest of the process; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter in (-1, -2, -3):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
        mallopt(parameter, _KEPT if parameter != -2 else _KEPT >> 3)
