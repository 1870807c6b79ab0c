"""Paths differ in wrappers in front, and in nothing else."""

from __future__ import annotations

import pytest

from lorascope.adapter.paths import Paths, alike


@pytest.mark.parametrize(
    ("base", "path", "found"),
    [
        (["model.layers.0.q", "layers.0.q"], "layers.0.q", ["layers.0.q"]),
        (["model.layers.0.q"], "base_model.model.layers.0.q", ["model.layers.0.q"]),
        (["base_model.model.model.layers.0.q"], "layers.0.q", ["base_model.model.model.layers.0.q"]),
        (["bert.encoder.q"], "roberta.encoder.q", []),  # exchanged: neither added nor dropped
        (["language_model.model.layers.0.q"], "model.language_model.layers.0.q", ["language_model.model.layers.0.q"]),
        (["model.layers.0.q", "visual.layers.0.q"], "language_model.layers.0.q", ["model.layers.0.q"]),
        (["bert.layers.0.q"], "model.layers.0.q", []),
        (["layers.0.q", "model.layers.1.q"], "layers.2.q", []),
        (["layers.0.q"], "decoder.layers.0.q", []),
        (["layers.0.q"], "model.vision_tower.layers.0.q", []),
        (["model.decoder.layers.0.q"], "layers.0.q", []),
        (["model.q", "bert.q"], "q", ["bert.q", "model.q"]),
        (["model"], "model", ["model"]),
        (["q"], "model", []),
    ],
)
def test_a_path_is_found_under_its_wrappers(base: list[str], path: str, found: list[str]) -> None:
    assert Paths(base).find(path) == found


def test_folders_of_components_are_wrappers_of_their_base_alone() -> None:
    assert Paths(["text_encoder.layers.0.q"], {"text_encoder"}).find("layers.0.q") == ["text_encoder.layers.0.q"]
    assert Paths(["text_encoder.layers.0.q"]).find("layers.0.q") == []


def test_paths_that_end_alike_are_named_in_messages() -> None:
    paths = ["vision.layers.0.q", "text.layers.0.q", "text.layers.1.q", "text.head"]
    assert alike("layers.0.q", paths) == ["vision.layers.0.q", "text.layers.0.q"]
    assert alike("9.head", paths) == ["text.head"] and alike("9.k", paths) == []
