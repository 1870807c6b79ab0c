"""Which files an adapter is: a path, a folder or a hub id → the weights file and the configuration beside it.

A configuration belongs to one weights file, so that a folder with both is one adapter, whatever lies beside them or in
its subfolders (``checkpoint-500``). Without a configuration a folder is one where no other weights lie in or below it;
else it is a folder of adapters, of which each weights file is one. ``is_adapter`` and ``find`` are this rule.

In a folder the safetensors file wins over the pickled one, as in PEFT and llama.cpp. Nothing that is named inside a
configuration is ever opened. Files may be symbolic links (the hub's cache is made of them); folders that are links
are not entered.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from lorascope.errors import AdapterError
from lorascope.formats.config_file import MAX_CONFIG, parse_config, read_config
from lorascope.formats.container import read_container
from lorascope.formats.contents import Contents
from lorascope.formats.safetensors_file import read_safetensors_view
from lorascope.formats.stored_zip import StoredZip, open_stored, through_stored

WEIGHTS_NAMES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapters.safetensors",
    "adapters.npz",
    "lora.safetensors",
)
"""Names that trainers give the weights of an adapter, the preferred ones first."""

CONFIG_NAME = "adapter_config.json"

SHARDS = "shards"
"""The folder of a packed zoo's archives; those elsewhere are not looked into."""

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf")
"""Endings of files that can be an adapter's weights."""

_NOT_ADAPTERS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state)\.(bin|pt|pth)"
    r"|(model|pytorch_model|diffusion_pytorch_model|consolidated|tf_model)([-.].*)?\.(safetensors|bin|pt|pth)"
)


def contents_of(location: str | os.PathLike[str]) -> Contents:
    """The tensors, metadata and configuration at a path or hub id; an existing path always wins.

    A path may lead through an archive of stored files: ``zoo/shards/00000000.zip/adapters/a``.

    Raises:
        AdapterError: where there is nothing, nothing that is an adapter, or more than one.
    """
    through = through_stored(location)
    if through is not None:
        return stored_contents(open_stored(through[0]), through[1])
    weights = weights_at(location)
    file = read_container(weights)
    config_path = config_beside(weights)
    config, text = (None, None) if config_path is None else read_config(config_path)
    return Contents(file.tensors, file.metadata, config, text, weights, file.container)


def stored_contents(archive: StoredZip, place: str) -> Contents:
    """As ``contents_of``, of a folder or a safetensors file in an archive of stored files.

    Raises:
        AdapterError: where there is no adapter in safetensors at that place.
    """
    weights, config = stored_names(archive, place)
    path = archive.path / weights
    file = read_safetensors_view(archive.members[weights], path)
    raw = None if config is None else bytes(archive.members[config][: MAX_CONFIG + 1])
    fields, text = (None, None) if raw is None else parse_config(raw, path.with_name(CONFIG_NAME))
    return Contents(file.tensors, file.metadata, fields, text, path)


def stored_names(archive: StoredZip, place: str) -> tuple[str, str | None]:
    """The members that are the weights and the configuration of the adapter at a place in an archive.

    Raises:
        AdapterError: where there is no adapter in safetensors.
    """
    folder = place if place in archive.folders else place.rpartition("/")[0]
    names = archive.folders.get(folder, ())
    name = chosen_name(names) if folder == place else place.rpartition("/")[2]
    if name not in names or not name.endswith(".safetensors"):
        raise AdapterError("the archive holds no such adapter", file=archive.path, key=place[:200])
    prefix = f"{folder}/" if folder else ""
    return prefix + name, prefix + CONFIG_NAME if CONFIG_NAME in names else None


def config_beside(weights: Path) -> Path | None:
    """The configuration beside a weights file, or None.

    Raises:
        AdapterError: where it is a broken link, a folder, a pipe or a device: without it the scale would be wrong.
    """
    path = weights.with_name(CONFIG_NAME)
    if path.is_file():
        return path
    if path.exists() or path.is_symlink():
        raise AdapterError("the configuration is not a regular file", file=path, hint="is it a broken link?")
    return None


def exists(location: str | os.PathLike[str]) -> bool:
    """Whether a local path is there; False for one that no file system could hold."""
    try:
        return Path(location).exists() or Path(location).is_symlink()
    except (OSError, ValueError):
        return False


def weights_at(location: str | os.PathLike[str]) -> Path:
    """The weights file that ``location`` stands for, downloaded where it is a hub id."""
    path = Path(location)
    try:
        if path.is_dir():
            return _weights_in(path)
        if path.exists() or path.is_symlink():
            return path
    except (OSError, ValueError) as error:  # a name too long, or with a null byte
        raise AdapterError(f"not a path: {error}", file=ascii(str(location))[:200]) from None
    from lorascope.formats.hub import download, parse_hub_id

    hub_id = parse_hub_id(os.fspath(location))
    if hub_id is None:
        raise AdapterError(
            "no such file or directory",
            file=location,
            hint="give a file, a folder, or a hub id such as owner/name, owner/name@revision:subfolder",
            code="not-found",
        )
    return download(hub_id)


def chosen_name(names: Sequence[str]) -> str | None:
    """The weights file among the file names of one folder: a known name, or the only file that can be one.

    >>> chosen_name(["README.md", "adapter_model.bin", "adapter_model.safetensors"])
    'adapter_model.safetensors'
    >>> chosen_name(["a.safetensors", "b.safetensors"]) is None
    True
    """
    for known in WEIGHTS_NAMES:
        if known in names:
            return known
    loose = loose_names(names)
    return loose[0] if len(loose) == 1 else None


def loose_names(names: Sequence[str]) -> list[str]:
    """The names that can be weights of an adapter, optimizer states and whole models left out."""
    return sorted(
        (
            name
            for name in names
            if PurePosixPath(name).suffix.lower() in WEIGHTS_SUFFIXES
            and not _NOT_ADAPTERS.fullmatch(name.lower())
            and not name.startswith(".")
        ),
        key=natural,
    )


def is_adapter(location: str | os.PathLike[str]) -> bool:
    """Whether a local path is a weights file or a folder that is one adapter and not several, judged by names alone."""
    path = Path(location)
    if not path.is_dir():
        return path.is_file() and bool(loose_names([path.name]))
    names = _file_names(path)
    if chosen_name(names) is None:
        return False
    return CONFIG_NAME in names or len(list(islice(_find(path), 2))) == 1


def stands_for_one(names: Sequence[str]) -> bool:
    """Whether the files of one folder make it an adapter that is named by the folder, its subfolders left aside.

    >>> stands_for_one(["adapter_model.bin", "adapter_model.safetensors", "adapter_config.json", "b.safetensors"])
    True
    >>> stands_for_one(["adapters.npz"]), stands_for_one(["adapters.npz", "b.npz"]), stands_for_one(["b.npz"])
    (True, False, False)
    """
    name = chosen_name(names)
    return name is not None and (CONFIG_NAME in names or (name in WEIGHTS_NAMES and not names_beside(names)))


def names_beside(names: Sequence[str]) -> list[str]:
    """The weights files of one folder that reading it passes by: those of another name than the one that it takes.

    ``adapter_model.bin`` beside ``adapter_model.safetensors`` is taken for the same adapter, written twice.

    >>> names_beside(["adapter_model.bin", "adapter_model.safetensors", "b.safetensors", "optimizer.pt"])
    ['b.safetensors']
    """
    name = chosen_name(names)
    stem = None if name is None else PurePosixPath(name).stem
    return [other for other in loose_names(names) if PurePosixPath(other).stem != stem] if name is not None else []


def beside(folder: str | os.PathLike[str]) -> list[Path]:
    """The weights files in the folder of an adapter that ``read`` and ``find`` pass by."""
    return [Path(folder) / name for name in names_beside(_file_names(Path(folder)))]


def find(directory: str | os.PathLike[str]) -> list[Path]:
    """All adapters in a tree, in natural order: folders that hold one, and loose weights files.

    A folder with a configuration is one adapter, and so is one with nothing but weights of a known name; ``beside``
    lists what else is in it, its subfolders are searched (``checkpoint-500``). In other folders each weights file is
    one. Hidden folders and linked folders are skipped.
    """
    return sorted(_find(Path(directory)), key=lambda path: natural(str(path)))


def _find(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        if Path(folder).name == SHARDS and (Path(folder).parent / "zoo.json").is_file():
            yield from _find_stored(Path(folder), names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if stands_for_one(names):
            yield Path(folder)
        else:
            yield from (Path(folder) / name for name in loose_names(names))


def _find_stored(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        if not name.endswith(".zip") or name.startswith("."):
            continue
        try:
            archive = open_stored(folder / name)
        except AdapterError:
            yield folder / name  # reading it says what is wrong
            continue
        for place, members in archive.folders.items():
            if chosen_name(members) is not None:
                yield folder / name / place


def natural(text: str) -> tuple[tuple[str, int, str], ...]:
    """A sort key under which ``checkpoint-90`` comes before ``checkpoint-100``."""
    parts = re.findall(r"(\D*)([0-9]*)", text)
    return tuple((word, int(digits[:4000]) if digits else -1, digits) for word, digits in parts)


def _check_irregular(folder: Path, names: Sequence[str]) -> None:
    """Say what stands in the place of weights, if it is no file: reading a pipe or a device would never end."""
    others = sorted({entry.name for entry in os.scandir(folder) if not entry.is_dir()} - set(names))
    name = chosen_name(others) or next(iter(loose_names(others)), None)
    if name is not None:
        raise AdapterError(
            f"the weights are {_kind_of((folder / name).lstat().st_mode)}, not a regular file",
            file=folder / name,
            code="weights-missing",
        )


def _kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link to nothing"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _file_names(folder: Path) -> list[str]:
    try:
        # of Path, for which a link that leads in a circle is no file; for an entry it is an error
        return [entry.name for entry in os.scandir(folder) if Path(entry.path).is_file()]
    except OSError as error:
        raise AdapterError(f"the folder cannot be read: {error.strerror}", file=folder) from error


def _weights_in(folder: Path) -> Path:
    names = _file_names(folder)
    name = chosen_name(names)
    # the only weights under another name, without a configuration, say nothing of a folder that holds adapters
    if name is not None and (name in WEIGHTS_NAMES or is_adapter(folder)):
        return folder / name
    loose = loose_names(names)
    if not loose:
        _check_irregular(folder, names)
    if len(loose) > 1:
        raise AdapterError(
            "the folder holds several adapters",
            file=folder,
            expected="one",
            found=", ".join(loose[:5]) + (", …" if len(loose) > 5 else ""),
            hint="give one of its files",
        )
    inside = find(folder)
    if inside:
        raise AdapterError(
            "the folder is a tree of adapters and not one",
            file=folder,
            expected="one adapter",
            found=f"{len(inside)}, such as {inside[0]}",
            hint="give one of them",
        )
    if CONFIG_NAME in names:
        raise AdapterError(
            f"an {CONFIG_NAME} without weights",
            file=folder,
            expected=", ".join(WEIGHTS_NAMES[:3]) + " …",
            found=", ".join(sorted(names)[:5]),
            hint="get the weights that it is of",
            code="weights-missing",
        )
    raise AdapterError(
        "the folder holds no adapter",
        file=folder,
        expected=", ".join(WEIGHTS_NAMES[:3]) + " …",
        found=", ".join(sorted(names)[:5]) or "no files",
    )
