"""Packed zoos: thousands of small adapters in a few archives of stored files, read by mapping them.

    shards/<k>.zip      adapters/<id>/adapter_model.safetensors, adapters/<id>/adapter_config.json, …: the exact bytes

The records know nothing of it: the files of a row lie at its path, or under that name in a shard. A file at the path
wins over a shard, and a later shard over an earlier one, so an adapter that was forged again is never hidden.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import AdapterError, OutputError, ZooError
from lorascope.formats.source import CONFIG_NAME, SHARDS, chosen_name, stored_names
from lorascope.formats.stored_zip import StoredZip, open_stored, write_stored
from lorascope.zoo.durable import sync_folder, sync_tree
from lorascope.zoo.lock import locked
from lorascope.zoo.log import logged
from lorascope.zoo.paths import inside
from lorascope.zoo.schema import SCHEMA_VERSION
from lorascope.zoo.store import ADAPTERS, DIVERGED, Row

if TYPE_CHECKING:
    from lorascope.zoo.zoo import Zoo

Advance = Callable[[int], Any]

SHARD_SIZE = 1000
SHARD_BYTES = 1 << 30
"""A shard ends at so many adapters or bytes, whichever comes first; a larger adapter stays a folder."""


@dataclass(frozen=True)
class PackResult:
    """What was done: adapters that changed place, shards written or read, and why others stayed where they were."""

    zoo: Path
    count: int
    shards: int
    left: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "count": self.count,
            "shards": self.shards,
            "left": dict(self.left),
        }


class Shards:
    """The shards of a zoo, opened once."""

    def __init__(self, zoo: Path) -> None:
        self.archives: list[StoredZip] = []
        self.damaged: dict[str, str] = {}
        for path in shard_files(zoo):
            try:
                self.archives.insert(0, open_stored(path))  # the latest first
            except AdapterError as error:
                self.damaged[f"{SHARDS}/{path.name}"] = error.what

    def find(self, place: str) -> StoredZip | None:
        """The shard that holds the files of a row's path."""
        return next((one for one in self.archives if place in one.folders or place in one.members), None)

    def names(self) -> Iterator[tuple[str, str]]:
        """Every place in every shard that may be an adapter's: folders with weights, and loose files."""
        for archive in self.archives:
            for folder, names in archive.folders.items():
                if folder and chosen_name(names) is not None:
                    yield f"{SHARDS}/{archive.path.name}", folder
                else:
                    yield from ((f"{SHARDS}/{archive.path.name}", f"{folder}/{name}") for name in names)


def shard_files(zoo: Path) -> list[Path]:
    """The shards of a zoo, the oldest first; none where the folder is a link to elsewhere."""
    folder = zoo / SHARDS
    if folder.is_symlink():
        return []
    return sorted(path for path in folder.glob("*.zip") if not path.name.startswith(".") and not path.is_symlink())


def packed_hashes(archive: StoredZip, place: str) -> dict[str, str | None]:
    """As ``store.hashes_of``, of an adapter in a shard."""
    weights, config = stored_names(archive, place)
    digest = None if config is None else sha256(archive.members[config]).hexdigest()
    return {"sha256": sha256(archive.members[weights]).hexdigest(), "config_sha256": digest}


def pack(zoo: Zoo, *, shard_size: int = SHARD_SIZE, on_progress: Advance | None = None) -> PackResult:
    """Move the adapters of a zoo into shards.

    A shard is on the disk, whole and compared with the files, before any of them is deleted; when this is interrupted,
    it goes on where it stopped when it is called again.

    Raises:
        ZooError: where the adapters lie where their owner has them (imported in place), or another run changes the zoo.
        OutputError: where the zoo cannot be written.
    """
    if shard_size < 1:
        raise ZooError("must be positive", key="shard_size", expected="at least 1", found=shard_size)
    rows = zoo.rows(only_usable=False)
    if rows and all(row["path"] == row["id"] for row in rows):
        raise ZooError(
            "the adapters are not the zoo's own: they were imported where they lie",
            file=zoo.path,
            hint="import them into a folder of their own with --out, and pack that",
        )
    with locked(zoo.path), _written(zoo.path), logged(zoo.path, "pack", {"shard_size": shard_size}) as counts:
        result = _pack(zoo, rows, shard_size, on_progress or (lambda _: None))
        counts |= {"packed": result.count, "shards": result.shards, "left": len(result.left)}
    return result


def _pack(zoo: Zoo, rows: Sequence[Row], shard_size: int, advance: Advance) -> PackResult:
    _remove_leftovers(zoo.path)
    (zoo.path / SHARDS).mkdir(exist_ok=True)
    left: dict[str, str] = {}
    batch: list[tuple[str, list[Path]]] = []
    count = written = size = 0

    def finish() -> None:
        nonlocal count, written, size, batch
        if batch:
            _write_shard(zoo.path, batch)
            count, written = count + len(batch), written + 1
            advance(len(batch))
        batch, size = [], 0

    before = Shards(zoo.path)
    for row in rows:
        place = inside(zoo.path, row["path"])
        if not place.exists() or row["path"].startswith(f"{DIVERGED}/"):
            continue
        files, why = _files(place)
        if why is not None or not row["path"].startswith(f"{ADAPTERS}/"):
            left[row["path"]] = why or f"lies outside of {ADAPTERS}/"
            continue
        archive = before.find(row["path"])
        if archive is not None and _is_copy(archive, zoo.path, files):
            _delete(zoo.path, place)  # packed by a run that was killed before it deleted the files
            count += 1
            advance(1)
            continue
        more = sum(file.stat().st_size for file in files)
        if len(batch) >= shard_size or size + more > SHARD_BYTES:
            finish()
        batch.append((row["path"], files))
        size += more
    finish()
    return PackResult(zoo.path, count, written, left)


def _files(place: Path) -> tuple[list[Path], str | None]:
    """The files of an adapter, or why it cannot be packed."""
    if place.is_file() and not place.is_symlink():
        files = [place]
        if place.with_name(CONFIG_NAME).exists():
            return files, "shares its folder with a configuration"
    elif place.is_dir():
        files = sorted(place.iterdir())
    else:
        return [place], "is a link or not a regular file"
    name = chosen_name([file.name for file in files])
    if any(file.is_symlink() or not file.is_file() for file in files):
        return files, "has links or folders in it"
    if name is None or not name.endswith(".safetensors"):
        return files, "is not in safetensors"
    if sum(file.stat().st_size for file in files) > SHARD_BYTES:
        return files, "is larger than a shard"
    return files, None


def _write_shard(zoo: Path, batch: Sequence[tuple[str, Sequence[Path]]]) -> None:
    numbers = [int(path.stem) for path in shard_files(zoo) if path.stem.isdecimal()]
    target = zoo / SHARDS / f"{max(numbers, default=-1) + 1:08d}.zip"
    temporary = target.with_name(f".tmp-{target.name}")
    files = [file for _, of_one in batch for file in of_one]
    try:
        write_stored(temporary, [(file.relative_to(zoo).as_posix(), file) for file in files])
        if not _is_copy(open_stored(temporary), zoo, files):
            raise OutputError("a shard does not read back as it was written", file=target)
        temporary.rename(target)
    except BaseException:  # a full disk above all, where every byte is wanted
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    for name, _ in batch:
        _delete(zoo, zoo / name)


def _is_copy(archive: StoredZip, zoo: Path, files: Sequence[Path]) -> bool:
    members = (archive.members.get(file.relative_to(zoo).as_posix()) for file in files)
    return all(
        member is not None and len(member) == file.stat().st_size and member == file.read_bytes()
        for member, file in zip(members, files, strict=True)
    )


def _delete(zoo: Path, place: Path) -> None:
    """Delete an adapter's files: out of sight at once, so that a half deleted one never hides what is packed."""
    if place.is_dir():
        away = zoo / f".tmp-packed-{os.getpid()}"
        place.rename(away)
        shutil.rmtree(away)
    else:
        place.unlink()
    parent = place.parent
    while parent != zoo / ADAPTERS and not any(parent.iterdir()):
        parent.rmdir()
        parent = parent.parent


def unpack(zoo: Zoo, *, on_progress: Advance | None = None) -> PackResult:
    """Put every adapter of the shards back at its path, byte for byte, and delete the shards when all are there.

    Raises:
        AdapterError: where a shard is damaged; nothing of it is deleted.
        ZooError: where a name in a shard leads out of the zoo's adapters.
        OutputError: where the zoo cannot be written.
    """
    with locked(zoo.path), _written(zoo.path), logged(zoo.path, "unpack", {}) as counts:
        _remove_leftovers(zoo.path)
        archives = [open_stored(path) for path in shard_files(zoo.path)][::-1]
        count = sum(_unpack(zoo.path, archive, on_progress or (lambda _: None)) for archive in archives)
        for archive in archives:
            archive.path.unlink()
        if archives:
            sync_folder(zoo.path / SHARDS)
            (zoo.path / SHARDS).rmdir()
        counts |= {"unpacked": count, "shards": len(archives)}
    return PackResult(zoo.path, count, len(archives), {})


def _unpack(zoo: Path, archive: StoredZip, advance: Advance) -> int:
    count = 0
    for folder, names in archive.folders.items():
        if folder.split("/")[0] != ADAPTERS:
            raise ZooError("a shard holds something else", file=archive.path, key=folder, expected=f"{ADAPTERS}/…")
        is_adapter = folder != ADAPTERS and chosen_name(names) is not None
        for place, within in [(folder, names)] if is_adapter else [(f"{folder}/{name}", ()) for name in names]:
            target = inside(zoo, place)
            if target.exists():  # there already, or made anew
                continue
            staging = zoo / f".tmp-unpack-{os.getpid()}"
            if within:
                staging.mkdir()
                for name in within:
                    (staging / name).write_bytes(archive.members[f"{folder}/{name}"])
            else:
                staging.write_bytes(archive.members[place])
            sync_tree(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
            sync_folder(target.parent)
            count += 1
            advance(1)
    return count


def _remove_leftovers(zoo: Path) -> None:
    for left in (*zoo.glob(".tmp-*"), *(zoo / SHARDS).glob(".tmp-*")):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextmanager
def _written(zoo: Path) -> Iterator[None]:
    """Errors of the system become errors that say which zoo could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputError("cannot write", file=zoo, found=error.strerror or error) from error
