"""Where a process trains, and the team that it belongs to where ``torchrun`` or ``accelerate launch`` started several.

    torchrun --nproc-per-node 4 -m lorascope forge RECIPE --device cuda …
    lorascope forge RECIPE --device cuda --workers 4 …

Either way each process takes cohorts of its own and a device of its own; nothing is exchanged but the news that the
zoo has been begun and that all are done, so the zoo is the same whichever way it was made.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_map

from lorascope.errors import ForgeError

DEVICES = ("cuda", "mps", "xpu")
"""What can train beside the processor."""

_PATIENCE = timedelta(days=30)  # the last cohort of another process may take long
_MEETING = timedelta(minutes=10)  # until all processes have started


@dataclass(frozen=True)
class Team:
    """This process among those that were launched together.

    Args:
        rank: its number.
        size: how many there are.
        local: its number among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the one that holds the zoo's lock, and writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes are here.

        Raises:
            ForgeError: where one of them has ended.
        """
        if self.size == 1:
            return
        try:
            with _ended_by_launcher(self.is_first):
                torch.distributed.barrier(_group())
        except (RuntimeError, ValueError) as error:
            raise ForgeError(
                "another of the processes that were launched together has ended, or never came",
                found=str(error).splitlines()[0],
                hint="its own message says why; a process that torchrun or accelerate did not launch has no RANK and "
                "WORLD_SIZE in its environment",
            ) from error


@cache
def _group() -> Any:
    """Of all processes, over the processor; opened once, and left open for the next zoo of the same processes."""
    distributed = torch.distributed
    if not distributed.is_initialized():  # by whoever called
        distributed.init_process_group("gloo", timeout=_MEETING)
    return distributed.new_group(backend="gloo", timeout=_PATIENCE)


@contextmanager
def _ended_by_launcher(is_first: bool) -> Iterator[None]:
    """End at once where the launcher says so: what waits does not look at signals, and has nothing to put in order."""
    if is_first or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def team() -> Team:
    """The team that the environment speaks of; of one where it speaks of none.

    Raises:
        ForgeError: where what it says cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in os.environ for name in names) or "MASTER_ADDR" not in os.environ:
        return Team()
    found = [os.environ[name] for name in names]
    if not all(value.isdecimal() for value in found) or not int(found[0]) < int(found[1]):
        raise ForgeError(
            "the environment of launched processes makes no sense",
            key=", ".join(names),
            expected="whole numbers, RANK below WORLD_SIZE",
            found=", ".join(found),
            hint="launch with torchrun or accelerate launch, or unset them",
        )
    return Team(*map(int, found))


def kind_of_device(device: str) -> str:
    """``cpu`` of cpu, ``cuda`` of cuda:1.

    Raises:
        ForgeError: where there is no such device on this machine.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", *DEVICES) or (number and not (number.isdecimal() and len(number) < 5)):
        raise ForgeError(
            "is no device", key="device", expected=", ".join(("cpu", *DEVICES)) + ", or one of several as cuda:1"
        )
    count = _count(kind)
    if int(number or 0) >= count:
        raise ForgeError(
            "there is no such device on this machine, or PyTorch was built without it",
            key="device",
            expected=f"{kind}:0 to {kind}:{count - 1}" if count else "cpu",
            found=device,
        )
    return kind


def device_of_process(device: str, number: int) -> torch.device:
    """The device of process ``number`` of this machine: the one that is named, or else they are dealt out in turn."""
    kind, _, named = device.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, int(named) if named else number % max(1, _count(kind)))


def usual_workers(device: str, together: Team) -> int:
    """The processes that a run has unless it is said: one for each core, or each device; one in a team.

    Raises:
        ForgeError: where there is no such device on this machine.
    """
    kind, named = kind_of_device(device), ":" in device
    if together.size > 1 or named:
        return 1
    if kind != "cpu":
        return max(1, _count(kind))
    # the cores that this process may use, which in a container are fewer than the machine has
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def placed(values: Any, device: torch.device) -> Any:
    """The tensors among values on the device, in whatever nest of lists, tuples and dicts."""
    return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, values)


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return getattr(torch, kind).device_count()
