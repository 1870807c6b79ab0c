"""Adapters made smaller: other ranks, shared bases, fewer bits, each with the error of what is written."""

from lorascope.compress.budget import Allocation, allocated
from lorascope.compress.extraction import Extracted, ExtractedSite, extract
from lorascope.compress.joint import Compressed, MemberError, compress
from lorascope.compress.pack import Pack
from lorascope.compress.pack_file import read_pack, write_pack
from lorascope.compress.resize import Resized, ResizedSite, resize
from lorascope.compress.unpack import decompress
from lorascope.symmetry.truncation import Cut

__all__ = [
    "Allocation",
    "Compressed",
    "Cut",
    "Extracted",
    "ExtractedSite",
    "MemberError",
    "Pack",
    "Resized",
    "ResizedSite",
    "allocated",
    "compress",
    "decompress",
    "extract",
    "read_pack",
    "resize",
    "write_pack",
]
