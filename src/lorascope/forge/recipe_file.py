"""Recipes by name or by file: a Python file of the user's own, with an instance of ``Recipe`` named ``RECIPE``.

The file is executed, so only what a person names is: on the command line, or as an argument. The path that is recorded
in a zoo is never followed, since a zoo may come from anyone; the recorded hash says whether a file that is named is
the one that the zoo was made with.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, LorascopeError
from lorascope.forge.recipe import Recipe
from lorascope.forge.recipes import RECIPES
from lorascope.zoo.store import sha256_of

_SUFFIX = ".py"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe's file as it was when it was named."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> RecipeFile:
        """The file of that path, as it is now.

        Raises:
            ForgeError: where there is none.
        """
        if not Path(path).is_file():
            raise ForgeError("there is no such recipe file", file=path)
        return cls(str(Path(path).resolve()), sha256_of(Path(path)))

    def as_dict(self) -> dict[str, str]:
        """As it is recorded in a zoo."""
        return asdict(self)


def find_recipe(name: str | Path) -> tuple[Recipe, RecipeFile | None]:
    """The recipe of that name, or the one in the file of that path, which ends in ``.py`` and is executed.

    Raises:
        LorascopeError: for an unknown name.
        ForgeError: where the file cannot be executed or defines no recipe.

    >>> import pytest; torch = pytest.importorskip("torch")
    >>> recipe, file = find_recipe("digits-vit")
    >>> recipe.name, file
    ('digits-vit', None)
    """
    if not str(name).endswith(_SUFFIX):
        return RECIPES[str(name)], None
    file = RecipeFile.of(name)
    return load_recipe(file), file


def failure_of(file: RecipeFile, error: BaseException) -> ForgeError:
    """The error of a run that the user's recipe ended, with the line of the recipe that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == file.path), None)
    return ForgeError(
        "the recipe fails",
        file=file.path,
        key=f"line {line}" if line else None,
        found=f"{type(error).__name__}: {error}",
    )


def recipe_of(name: str, file: RecipeFile | None) -> Recipe:
    """The recipe that a run was begun with, for another process.

    Raises:
        ForgeError: where the file is no longer as it was.
    """
    return RECIPES[name] if file is None else load_recipe(file)


def load_recipe(file: RecipeFile) -> Recipe:
    """Execute the file, once in a process, and give its recipe.

    Raises:
        ForgeError: where it has changed, cannot be executed, or defines no recipe.
    """
    found = sha256_of(Path(file.path)) if Path(file.path).is_file() else "nothing"
    if found != file.sha256:
        raise ForgeError(
            "the recipe file is not as it was when the run began", file=file.path, expected=file.sha256, found=found
        )
    # found again by that name, as for classes of the file that are pickled
    module = f"lorascope_recipe_{file.sha256[:16]}"
    if module not in sys.modules:
        _execute(module, file.path)
    return _checked(getattr(sys.modules[module], "RECIPE", None), file.path)


def _execute(name: str, path: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ForgeError("is not a Python file that can be loaded", file=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, LorascopeError) or not isinstance(error, Exception):
            raise
        raise ForgeError(
            "the recipe file fails when it is executed", file=path, found=f"{type(error).__name__}: {error}"
        ) from error


def _checked(recipe: Any, path: str) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise ForgeError(
            "the file defines no recipe",
            file=path,
            key="RECIPE",
            expected="an instance of lorascope.forge.Recipe",
            found="nothing" if recipe is None else type(recipe).__name__,
        )
    name = getattr(recipe, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # it becomes part of file names
        raise ForgeError(
            "the recipe has no usable name", file=path, key="name", expected="words-with-dashes", found=name
        )
    if name in RECIPES.names():
        raise ForgeError("the recipe has the name of another", file=path, key="name", found=name)
    return recipe
