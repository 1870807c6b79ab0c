"""Adapters from one format to another, and into checkpoints, with every loss named and measured."""

from lorascope.conversion.bake import BakeReport, bake
from lorascope.conversion.convert import convert
from lorascope.conversion.loss import Loss, LossReport, relative_error

__all__ = ["BakeReport", "Loss", "LossReport", "bake", "convert", "relative_error"]
