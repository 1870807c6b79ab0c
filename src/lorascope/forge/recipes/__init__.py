"""Recipes: one file each, with the base model, the data, the declared space and the labels to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.family import Family

if TYPE_CHECKING:
    from lorascope.forge.recipe import Recipe

RECIPES: Family[Recipe] = Family("recipe", "lorascope.forge.recipes", "RECIPE", "lorascope.recipes")
