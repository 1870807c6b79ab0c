"""The base model of a zoo: pretrained once, kept in the zoo, known by the hash of its file.

What a base has from elsewhere, such as a model that a package brings, is not copied: the file then holds the other
weights only, and its metadata say what was found, so that the hash of the file stands for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from lorascope.errors import ForgeError, ZooError
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipe import Recipe
from lorascope.forge.recipe_file import RecipeFile, load_recipe
from lorascope.forge.recipes import RECIPES
from lorascope.zoo.store import BASE, HEADER, read_json, sha256_of, write_atomically, write_json

WEIGHTS = Path(BASE)
_FOUND = "found"


def load_base(zoo: str | Path, recipe: str | Path | None = None) -> nn.Module:
    """The base model that the adapters of a zoo were trained on, frozen and in evaluation mode.

    Args:
        zoo: its folder.
        recipe: the recipe's file, for a zoo that was made with one: it is executed, so the zoo alone does not name it.

    Raises:
        ZooError: where the zoo has no base or its file is not the one that the adapters were trained on, or where
            the recipe's file is needed and is not the one that the zoo was made with.
    """
    folder = Path(zoo)
    header = read_json(folder / HEADER)
    member, _ = recipe_of_zoo(header, recipe, folder)
    return frozen_base(member, member.options_of(header["settings"]), folder, header["base_hash"])


def recipe_of_zoo(header: Mapping[str, Any], given: str | Path | None, zoo: Path) -> tuple[Recipe, RecipeFile | None]:
    """The recipe that a zoo was made with, and its file where it has one: that file only if it is ``given``.

    Raises:
        ZooError: where the zoo was not forged, or the file is needed and is not the one that it was made with.
    """
    recorded = header.get("recipe_file")
    if not header.get("base_hash") or (recorded is None and header.get("recipe") not in RECIPES.names()):
        raise ZooError(
            "the zoo has no base model of its own",
            file=zoo,
            key="recipe",
            found=header.get("recipe"),
            hint="only zoos that were forged carry their base",
        )
    if recorded is None:
        return RECIPES[header["recipe"]], None
    if given is None:
        raise ZooError(
            "the zoo was made with a recipe file, which is Python and is not executed unless it is named",
            file=zoo,
            key="recipe_file",
            found=recorded["path"],
            hint=f"name it, if you trust it: recipe={recorded['path']!r}, or --recipe on the command line",
        )
    file = RecipeFile.of(given)
    if file.sha256 != recorded["sha256"]:
        raise ZooError(
            "is not the recipe file that the zoo was made with",
            file=given,
            key="sha256",
            expected=recorded["sha256"],
            found=file.sha256,
        )
    return load_recipe(file), file


def frozen_base(recipe: Recipe, options: Mapping[str, Any], zoo: Path, base_hash: str) -> nn.Module:
    """The base in a zoo's folder, which must have that hash.

    Raises:
        ZooError: where it is missing or another.
    """
    path = zoo / WEIGHTS
    if not path.is_file():
        raise ZooError("the base model is missing", file=path)
    if sha256_of(path) != base_hash:
        raise ZooError(
            "is not the base that the adapters were trained on",
            file=path,
            key="sha256",
            expected=base_hash,
            found=sha256_of(path),
        )
    return _frozen(recipe, options, path)


def make_base(
    recipe: Recipe,
    options: Mapping[str, Any],
    zoo: Path,
    expected_hash: str | None,
    on_begin: Callable[[], Any] | None = None,
) -> str:
    """Make sure that the zoo has its base model; gives its hash.

    ``on_begin`` is called where it has to be made, which may take minutes.

    Raises:
        ForgeError: where the base must be pretrained again and comes out otherwise.
    """
    path = zoo / WEIGHTS
    if expected_hash is None or not path.is_file():
        if on_begin is not None:
            on_begin()
        path.parent.mkdir(exist_ok=True)
        found_base = dict(recipe.found(options))
        with deterministic():
            trained = recipe.pretrain(options)
        weights = {name: value.contiguous() for name, value in recipe.made(trained).items()}
        write_atomically(path, save(weights, metadata=_metadata(found_base)))
        described = {"schema_version": 1, "recipe": recipe.name, **options}
        write_json(path.with_name("config.json"), described | ({_FOUND: found_base} if found_base else {}))
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


def _metadata(found: Mapping[str, str]) -> dict[str, str]:
    # one entry and no more: safetensors writes several in an order that changes, and the hash of the file with it
    return {_FOUND: json.dumps(dict(found), sort_keys=True)} if found else {"format": "pt"}


def _frozen(recipe: Recipe, options: Mapping[str, Any], path: Path) -> nn.Module:
    try:
        with safe_open(path, "pt") as file:
            recorded = json.loads((file.metadata() or {}).get(_FOUND, "{}"))
        found = dict(recipe.found(options))
        if recorded != found:
            raise ZooError(
                "the base that is installed is not the one that the adapters were trained on",
                file=path,
                key=_FOUND,
                expected=recorded,
                found=found,
            )
        model, weights = recipe.architecture(options), load_file(path)
        expected = set(recipe.made(model))
        if set(weights) != expected:
            names = sorted(set(weights) ^ expected)
            raise ZooError(
                "is not the recipe's base model", file=path, key=names[0], expected=f"{len(expected)} tensors"
            )
        model.load_state_dict(weights, strict=False)  # shapes are checked still; the rest was found
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ZooError("is not the recipe's base model", file=path, found=str(error).splitlines()[0]) from error
    return model.eval().requires_grad_(False)
