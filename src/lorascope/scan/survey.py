"""What a walk through a folder leaves alone: weights in no adapter, configurations without weights, all other files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorascope.formats.source import CONFIG_NAME, chosen_name
from lorascope.scan.finding import Finding
from lorascope.scan.unread import is_weights_like, unread_findings

MAX_LISTED = 1000
"""How many names of files a survey keeps; it counts all."""


@dataclass
class Survey:
    """What is in a folder beside the adapters that were verified.

    Args:
        findings: about weights in no adapter that was verified, and configurations without weights.
        count: how many files and folders were not looked at.
        not_looked_at: their names relative to the folder, at most ``MAX_LISTED``; those of folders end in ``/``.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    count: int = 0
    not_looked_at: list[str] = field(default_factory=list[str])

    def leave(self, names: Iterable[str]) -> None:
        """Count what is not looked at."""
        for name in names:
            self.count += 1
            if len(self.not_looked_at) < MAX_LISTED:
                self.not_looked_at.append(name)


def survey(root: Path, verified: Iterable[Path]) -> Survey:
    """What verifying the paths ``verified`` under ``root`` leaves alone; hidden and linked folders count as one each.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "README.md").write_text("read me"), (folder / "adapter_config.json").write_text("{}")
    >>> found = survey(folder, [])
    >>> [finding.code for finding in found.findings], found.not_looked_at
    (['weights-missing'], ['README.md'])
    """
    looked_at = set(verified)
    archives = {parent for path in looked_at if not path.exists() for parent in path.parents}
    result, weights = Survey(), list[Path]()
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        apart = sorted(name for name in folders if name.startswith(".") or (here / name).is_symlink())
        folders[:] = sorted(name for name in folders if name not in apart)
        result.leave(f"{(here / name).relative_to(root).as_posix()}/" for name in apart)
        rest = [name for name in sorted(names) if here / name not in looked_at and here / name not in archives]
        has_adapter = here in looked_at or any(here / name in looked_at for name in names)
        known = (CONFIG_NAME, chosen_name(names)) if here in looked_at else (CONFIG_NAME,)
        if CONFIG_NAME in names and not has_adapter and chosen_name(names) is None:
            place = here.relative_to(root).as_posix()
            text = f"an {CONFIG_NAME} without weights{'' if place == '.' else f' in {place}'}"
            result.findings.append(Finding("weights-missing", "error", text, hint="get the weights that it is of"))
        for path in (here / name for name in rest if name not in known):
            if not is_weights_like(path):
                result.leave([path.relative_to(root).as_posix()])
            elif here not in looked_at:  # those beside an adapter are among its own findings
                weights.append(path)
    result.findings += unread_findings(weights, root)
    return result
