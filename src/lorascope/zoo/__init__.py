"""A zoo: a folder of adapters with labels and splits, the data set of weight-space learning."""

from lorascope.zoo.imported import ImportReport
from lorascope.zoo.importer import import_zoo
from lorascope.zoo.layouts import LAYOUTS
from lorascope.zoo.merging import MergeResult, merge_zoos
from lorascope.zoo.published import import_published
from lorascope.zoo.schema import SCHEMA_VERSION, SPLITS, Column, Role, Split, Type, split_of
from lorascope.zoo.shards import PackResult, pack, unpack
from lorascope.zoo.splitting import Splitting
from lorascope.zoo.store import write_manifest
from lorascope.zoo.verification import Defect, Verification, verify_zoo
from lorascope.zoo.zoo import Zoo

__all__ = [
    "LAYOUTS",
    "SCHEMA_VERSION",
    "SPLITS",
    "Column",
    "Defect",
    "ImportReport",
    "MergeResult",
    "PackResult",
    "Role",
    "Split",
    "Splitting",
    "Type",
    "Verification",
    "Zoo",
    "import_published",
    "import_zoo",
    "merge_zoos",
    "pack",
    "split_of",
    "unpack",
    "verify_zoo",
    "write_manifest",
]
