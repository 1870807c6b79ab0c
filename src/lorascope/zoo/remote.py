"""Zoos on the Hugging Face hub: pushed and pulled file by file, both resumable, and verified on both sides.

Only the files that a zoo consists of are taken, whatever else a repository holds, and none under a name that could lead
out of the zoo's folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorascope.errors import OutputError, ZooError
from lorascope.formats.hub import HubId, client, parse_hub_id, told
from lorascope.formats.source import CONFIG_NAME
from lorascope.zoo.assembly import check_new
from lorascope.zoo.log import LOG
from lorascope.zoo.regular import check_no_links
from lorascope.zoo.schema import SCHEMA_VERSION
from lorascope.zoo.shards import shard_files
from lorascope.zoo.splitting import SPLIT
from lorascope.zoo.store import BASE, HEADER, MANIFEST, import_pyarrow, names_of, read_json, record_files, sha256_of
from lorascope.zoo.verification import verify_zoo
from lorascope.zoo.zoo import Zoo

RepoType = Literal["dataset", "model"]
Advance = Callable[[int], Any]

FILES_OF_A_COMMIT = 100
MAX_FILES = 10_000
"""More files make a repository that the hub serves badly: such a zoo is packed first."""

_ZOO_FILE = re.compile(
    r"zoo\.json|split\.json|log\.jsonl|manifest\.parquet|base/(model\.safetensors|config\.json)"
    r"|cohorts/[0-9]{8}\.json|shards/[0-9]{8}\.zip|(adapters|diverged)/.+"
)
_LOCAL_FIELDS = ("source",)  # of the header: paths of the machine that made the zoo


@dataclass(frozen=True)
class TransferResult:
    """What was done: the repository, the files of the zoo, and how many of them had to be sent or fetched."""

    zoo: Path
    repo: str
    files: int
    moved: int

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "repo": self.repo,
            "files": self.files,
            "moved": self.moved,
        }


def push(
    zoo: str | Path,
    repo: str,
    *,
    private: bool = False,
    repo_type: RepoType = "dataset",
    on_progress: Advance | None = None,
) -> TransferResult:
    """Send a zoo to a repository, which is made where it does not exist.

    Files that are there already, by their hash, are not sent again, so that an interrupted push goes on; ``zoo.json``
    goes last. Files of an earlier push that the zoo has no more are deleted; others in the repository are left alone.

    Raises:
        ZooError: where the zoo is not as recorded, or has too many files.
        AdapterError: where the hub cannot be reached or refuses.
    """
    hub_id, folder = _hub_id(repo), Path(zoo)
    found = verify_zoo(folder)
    if found.defects:
        raise ZooError("is not as recorded: it is not pushed", file=zoo, found=found.defects[0].what, hint=found.hint)
    local = _local_files(folder)
    if len(local) > MAX_FILES:
        raise ZooError(
            "has too many files for a repository",
            file=zoo,
            expected=f"at most {MAX_FILES}",
            found=len(local),
            hint=f"`lorascope zoo pack {zoo}` first",
        )
    hub: Any = client()
    api = hub.HfApi()
    with told(hub_id, is_place=False):
        api.create_repo(hub_id.repo, repo_type=repo_type, private=private, exist_ok=True)
    there = _listed(api, hub_id, repo_type, hub_id.revision)
    new = [name for name in local if name not in there or not _is_same(local[name], there[name])]
    advance = on_progress or (lambda _: None)
    advance(len(local) - len(new))
    gone = [name for name in there if _is_zoo_file(name) and name not in local]
    batches = [new[first : first + FILES_OF_A_COMMIT] for first in range(0, len(new), FILES_OF_A_COMMIT)]
    if gone:  # only when all that takes their place is there
        batches = [*batches, []]
    for number, batch in enumerate(batches):
        operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=local[name]) for name in batch]
        if number == len(batches) - 1:
            operations += [hub.CommitOperationDelete(path_in_repo=name) for name in gone]
        with told(hub_id, is_place=False):
            api.create_commit(
                hub_id.repo,
                operations,
                commit_message=f"lorascope zoo, part {number + 1} of {len(batches)}",
                repo_type=repo_type,
                revision=hub_id.revision,
            )
        advance(len(batch))
    return TransferResult(folder, hub_id.repo, len(local), len(new))


def pull(
    repo: str, out: str | Path, *, repo_type: RepoType = "dataset", on_progress: Advance | None = None
) -> TransferResult:
    """Fetch a zoo from ``owner/name[@revision]`` into a new folder, and verify it.

    What was fetched waits in a hidden folder beside ``out`` until all is there, so that an interrupted pull goes on.

    Raises:
        AdapterError: where the hub cannot be reached, or has no such repository or revision.
        ZooError: where the repository holds no zoo, or one that is not as recorded.
        OutputError: where ``out`` is not new.
        MissingExtraError: without pyarrow, which verifying needs.
    """
    hub_id, target = _hub_id(repo), Path(out)
    check_new(target)
    import_pyarrow()  # before gigabytes are fetched
    hub: Any = client()
    api = hub.HfApi()
    with told(hub_id, is_place=False):
        commit = api.repo_info(hub_id.repo, repo_type=repo_type, revision=hub_id.revision, timeout=30).sha
    names = [name for name in _listed(api, hub_id, repo_type, commit) if _is_zoo_file(name)]
    if HEADER not in names:
        raise ZooError("the repository holds no zoo", file=hub_id, expected=HEADER, found=f"{len(names)} of its files")
    # another commit is another folder: what was fetched of one never mixes with what is fetched of another
    staging = (
        target.parent / f".{target.name}-pull-{hashlib.sha256(f'{hub_id.repo} {commit}'.encode()).hexdigest()[:12]}"
    )
    moved = 0
    with _writes(target):
        for name in names:
            if not (staging / name).is_file():
                moved += 1
            with told(hub_id, is_place=False):
                api.hf_hub_download(hub_id.repo, name, repo_type=repo_type, revision=commit, local_dir=staging)
            if on_progress is not None:
                on_progress(1)
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        found = verify_zoo(staging)
        if found.defects:
            shutil.rmtree(staging)
            raise ZooError(
                "the zoo in the repository is not as recorded",
                file=hub_id,
                key=found.defects[0].path,
                found=f"{len(found.defects)} defects: {found.defects[0].what}",
                hint="ask its owner to verify it and to push it again",
            )
        if target.exists():
            target.rmdir()
        staging.rename(target)
    return TransferResult(target, str(hub_id), len(names), moved)


def _hub_id(repo: str) -> HubId:
    hub_id = parse_hub_id(repo)
    if hub_id is None or hub_id.subfolder:
        raise ZooError("is no repository of the hub", key=repo, expected="owner/name or owner/name@revision")
    return hub_id


@contextmanager
def _writes(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError("the zoo cannot be written", file=target, found=error.strerror) from error


def _is_zoo_file(name: str) -> bool:
    parts = name.split("/")
    is_plain = all(part not in ("", ".", "..") and not part.startswith(".") for part in parts) and "\\" not in name
    return is_plain and _ZOO_FILE.fullmatch(name) is not None


def _local_files(folder: Path) -> dict[str, Path | bytes]:
    """What the records name, by name, the header last and without what is of this machine alone; none is a link."""
    zoo = Zoo.open(folder)
    if any(row["path"] == row["id"] for row in zoo.recorded_rows()):
        raise ZooError(
            "the adapters are not the zoo's own: they were imported where they lie",
            file=folder,
            hint="import them into a folder of their own with --out, and push that",
        )
    named = [folder / name for name in (SPLIT, LOG, MANIFEST, BASE, Path(BASE).with_name("config.json"))]
    named += [*record_files(folder), *shard_files(folder)]
    for path in (folder / row["path"] for row in zoo.recorded_rows()):
        if path.is_dir():
            named += [path / name for name in names_of(sorted(file.name for file in path.iterdir()))]
        else:
            named += [path, path.with_name(CONFIG_NAME)]
    names = sorted({path.relative_to(folder).as_posix() for path in named if path.is_file()})
    # a link, or a file in a linked folder
    check_no_links(folder, {str(part) for name in [*names, HEADER] for part in [Path(name), *Path(name).parents[:-1]]})
    files: dict[str, Path | bytes] = {name: folder / name for name in names if _is_zoo_file(name)}
    header = _without_paths(read_json(folder / HEADER))
    return {**files, HEADER: (json.dumps(header, indent=1) + "\n").encode()}


def _without_paths(header: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in header.items() if name not in _LOCAL_FIELDS}
    if isinstance(kept.get("recipe_file"), dict):
        kept["recipe_file"] = {**kept["recipe_file"], "path": Path(kept["recipe_file"]["path"]).name}
    if "merged" in kept:
        kept["merged"] = [_without_paths(one) for one in kept["merged"]]
    return kept


def _listed(api: Any, hub_id: HubId, repo_type: RepoType, revision: str | None) -> Mapping[str, Any]:
    """The files of a repository by name, with their hashes."""
    with told(hub_id, is_place=False):
        entries: Sequence[Any] = list(
            api.list_repo_tree(hub_id.repo, recursive=True, repo_type=repo_type, revision=revision)
        )
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id") and isinstance(entry.path, str)}


def _is_same(local: Path | bytes, entry: Any) -> bool:
    size = len(local) if isinstance(local, bytes) else local.stat().st_size
    if size != entry.size:
        return False
    if entry.lfs is not None:
        digest = hashlib.sha256(local).hexdigest() if isinstance(local, bytes) else sha256_of(local)
        return entry.lfs.sha256 == digest
    content = local if isinstance(local, bytes) else local.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False).hexdigest()
