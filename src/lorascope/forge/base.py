"""The base model of a zoo: pretrained once, kept in the zoo, known by the hash of its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from lorascope.errors import ForgeError, ZooError
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipe import Recipe
from lorascope.forge.recipes import RECIPES
from lorascope.zoo.store import BASE, HEADER, read_json, sha256_of, write_atomically, write_json

WEIGHTS = Path(BASE)


def load_base(zoo: str | Path) -> nn.Module:
    """The base model that the adapters of a zoo were trained on, frozen and in evaluation mode.

    Raises:
        ZooError: where the zoo has no base or its file is not the one that the adapters were trained on.
    """
    folder = Path(zoo)
    header = read_json(folder / HEADER)
    if header.get("recipe") not in RECIPES.names() or not header.get("base_hash"):
        raise ZooError(
            "the zoo has no base model of its own",
            file=folder,
            key="recipe",
            found=header.get("recipe"),
            hint="only zoos that were forged carry their base",
        )
    recipe = RECIPES[header["recipe"]]
    path = folder / WEIGHTS
    if not path.is_file():
        raise ZooError("the base model is missing", file=path)
    if sha256_of(path) != header["base_hash"]:
        raise ZooError(
            "is not the base that the adapters were trained on",
            file=path,
            key="sha256",
            expected=header["base_hash"],
            found=sha256_of(path),
        )
    return _frozen(recipe, path)


def make_base(recipe: Recipe, options: Mapping[str, Any], zoo: Path, expected_hash: str | None) -> str:
    """Make sure that the zoo has its base model; gives its hash.

    Raises:
        ForgeError: where the base must be pretrained again and comes out otherwise.
    """
    path = zoo / WEIGHTS
    if expected_hash is None or not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with deterministic():
            trained = recipe.pretrain(options)
        weights = {name: value.contiguous() for name, value in trained.state_dict().items()}
        write_atomically(path, save(weights, metadata={"format": "pt"}))
        write_json(path.with_name("config.json"), {"schema_version": 1, "recipe": recipe.name, **options})
    found = sha256_of(path)
    if expected_hash not in (None, found):
        raise ForgeError(
            "the base model is not the one that this zoo was begun with",
            file=path,
            key="sha256",
            expected=expected_hash,
            found=found,
            hint="put the file back, or begin again with --fresh",
        )
    return found


def _frozen(recipe: Recipe, path: Path) -> nn.Module:
    model = recipe.architecture()
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ZooError("is not the recipe's base model", file=path, found=str(error).splitlines()[0]) from error
    return model.eval().requires_grad_(False)
