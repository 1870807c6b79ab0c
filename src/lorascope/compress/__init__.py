"""Adapters made smaller: other ranks, shared bases, fewer bits, each with the error of what is written."""

from lorascope.compress.budget import Allocation, allocated
from lorascope.compress.resize import Resized, ResizedSite, resize

__all__ = ["Allocation", "Resized", "ResizedSite", "allocated", "resize"]
