"""Whether a saved predictor is what was written: a digest of every array, and one of all values.

    arrays    name → BLAKE2b-64 of dtype, shape and bytes
    digest    BLAKE2b-128 of the configuration without itself, the digests of the arrays included

It guards against damage: a bit that flipped, an array that was lost, files of two predictors in one folder. It does
not guard against an author, who can compute all of it anew; what a predictor may say at all is checked by ``store``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError

Arrays = Mapping[str, NDArray[Any]]

ARRAYS, DIGEST = "arrays", "digest"


def sealed(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """The configuration with the digests, instead of those that it may hold.

    >>> sealed({"seed": 1}, {"x": np.zeros(2)})
    {'seed': 1, 'arrays': {'x': 'df7caa2f664fe706'}, 'digest': '922f43833bd09a493a9dced9afcb9c04'}
    """
    own = {name: value for name, value in config.items() if name not in (ARRAYS, DIGEST)}
    own[ARRAYS] = {name: _of_array(array) for name, array in arrays.items()}
    return {**own, DIGEST: _of_values(own)}


def check_seal(config: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse a configuration and arrays that are not those that were written together.

    Raises:
        PredictorError: naming the first array that is missing, is nobody's, or was altered.
    """
    recorded: Mapping[str, str] = config[ARRAYS]
    for what, names in (
        ("an array of the predictor is missing", recorded.keys() - arrays.keys()),
        ("an array belongs to no part of the predictor", arrays.keys() - recorded.keys()),
        (
            "an array of the predictor is not what was written",
            {name for name in recorded.keys() & arrays.keys() if recorded[name] != _of_array(arrays[name])},
        ),
    ):
        if names:
            raise PredictorError(
                what,
                key=min(names),
                expected=f"the {len(recorded)} arrays that were written",
                found=f"{len(names)} such",
                hint="the file is damaged or of another predictor: copy it again, or fit anew",
            )
    if config[DIGEST] != _of_values({name: value for name, value in config.items() if name != DIGEST}):
        raise PredictorError(
            "the values of the predictor are not what was written",
            hint="the file is damaged or was edited: copy it again, or fit anew",
        )


def _of_array(array: NDArray[Any]) -> str:
    digest = blake2b(f"{array.dtype.str} {array.shape} ".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _of_values(values: Mapping[str, Any]) -> str:
    """As they read in a file: tuples are lists there, and keys are text."""
    plain = json.loads(json.dumps(values))
    return blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
