"""Recipes: one file each, with the base model, the data, the declared space and the labels to measure."""
