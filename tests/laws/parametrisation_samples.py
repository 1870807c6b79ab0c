"""Small valid tensors for every parametrisation, by role; the base weight is [12, 8] unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUT, IN = 12, 8
Draw = Callable[..., NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """Roles → shapes (or ready arrays), what the configuration says, and the base weight's shape."""

    roles: Mapping[str, tuple[int, ...] | NDArray[Any]]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: tuple[int, ...] = (OUT, IN)
    layer: str = "linear"

    def tensors(self, seed: int, dtype: Any = np.float64) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(seed)
        return {
            role: (0.3 * rng.standard_normal(what)).astype(dtype) if isinstance(what, tuple) else what
            for role, what in self.roles.items()
        }


def halves(rank: int) -> dict[str, tuple[int, ...]]:
    return {"w1_a": (OUT, rank), "w1_b": (rank, IN), "w2_a": (OUT, rank), "w2_b": (rank, IN)}


SAMPLES: Mapping[str, tuple[Sample, ...]] = {
    "adalora": (Sample({"B": (OUT, 3), "A": (3, IN), "E": (3, 1)}, {"init_r": 3}),),
    "bat": (Sample({"block": (3, 4, 4)}),),
    "bdlora": (
        Sample({"B": (OUT, 2), "A": (4, IN)}),
        Sample({"B": (OUT, 4), "A": (4, IN // 2)}, {"blocks_a": 2}),
    ),
    "beft": (Sample({"bias": (1, OUT)}),),
    "boft": (Sample({"R": (1, 2, 4, 4), "s": (OUT, 1)}),),
    "c3a": (Sample({"kernel": (3, 2, 4)}),),
    "deft": (
        Sample({"P": (OUT, 2), "R": (2, IN)}, {"alpha": 3}),
        Sample({"P": (OUT, 2)}, {"para": True, "decomposition_method": "qr"}),
    ),
    "delora": (Sample({"B": (OUT, 2), "A": (2, IN), "lambda": (1,), "w_norm": (IN,)}),),
    "dora": (Sample({"B": (OUT, 2), "A": (2, IN), "magnitude": (OUT,)}),),
    "fourierft": (Sample({"spectrum": (10,)}, {"random_loc_seed": 7}),),
    "full": (
        Sample({"diff": (OUT, IN), "diff_b": (OUT,)}),
        Sample({"diff": (OUT, 2, 2, 2)}, base=(OUT, 2, 2, 2)),
        Sample({"diff": (OUT,)}, base=(OUT,)),
    ),
    "glora": (Sample({"a1": (IN, 2), "a2": (2, IN), "b1": (OUT, 2), "b2": (2, IN)}),),
    "gralora": (Sample({"A": (2, IN // 2, 4), "B": (2, 4, OUT // 2)}),),
    "hira": (Sample({"B": (OUT, 2), "A": (2, IN)}),),
    "hra": (Sample({"u": (IN, 2)}), Sample({"u": (IN, 2)}, {"apply_GS": True})),
    "ia3": (Sample({"gate": (OUT, 1)}), Sample({"gate": (1, IN)})),
    "kasa": (Sample({"B": (OUT, 3), "A": (3, IN), "diag": (3,)}, {"kasa_config": {}}),),
    "locon": (Sample({"B": (OUT, 3, 1, 1), "mid": (3, 2, 2, 2), "A": (2, 2, 1, 1)}, base=(OUT, 2, 2, 2)),),
    "loha": (
        Sample(halves(2)),
        Sample(halves(5)),
        Sample(
            {f"w{half}_{end}": (2, size) for half in "12" for end, size in (("a", OUT), ("b", 2))}
            | {"t1": (2, 2, 2, 2), "t2": (2, 2, 2, 2)},
            base=(OUT, 2, 2, 2),
        ),
    ),
    "lokr": (
        Sample({"w1": (3, 2), "w2": (4, 4)}),
        Sample({"w1_a": (3, 1), "w1_b": (1, 2), "w2_a": (4, 2), "w2_b": (2, 4)}),
        Sample({"w1": (3, 2), "t2": (2, 2, 2, 2), "w2_a": (2, 4), "w2_b": (2, 1)}, base=(OUT, 2, 2, 2)),
        Sample({"w1": (3, 2), "w2": (4, 1, 2, 2)}, base=(OUT, 2, 2, 2)),
    ),
    "lora": (
        Sample({"B": (OUT, 3), "A": (3, IN), "bias": (OUT,)}),
        Sample({"B": (OUT, 3, 1, 1), "A": (3, 2, 2, 2)}, base=(OUT, 2, 2, 2)),
        Sample({"B": (OUT, 3), "A": (3, IN)}, base=(IN, OUT), layer="embedding"),
    ),
    "lycoris-boft": (Sample({"blocks": (2, 4, 4, 4)}, base=(16, IN)),),
    "lycoris-ia3": (
        Sample({"weight": (OUT,), "on_input": np.array(0.0)}),
        Sample({"weight": (IN,), "on_input": np.array(1.0)}),
    ),
    "lycoris-oft": (Sample({"blocks": (3, 4, 4)}),),
    "miss": (Sample({"block": (4, OUT)}), Sample({"block": (4, OUT)}, {"r": 4})),
    "norm": (Sample({"weight": (OUT,), "bias": (OUT,)}, base=(OUT,)),),
    "oft": (Sample({"R": (2, 6)}, {"oft_block_size": 4}),),
    "osf": (Sample({"U": (OUT, 3), "S": (3,), "V": (3, IN)}),),
    "peanut": (
        Sample({"A": (2, OUT), "B": (OUT, 2)}),
        Sample(
            {"A": (2, OUT), "B": (OUT, 2), "encoder_0": (2, 2), "decoder_0": (2, 2)}, {"depth": 1, "act_fn": "tanh"}
        ),
    ),
    "pvera": (Sample({"lambda_b": (OUT,), "lambda_d": (4,), "A": (4, IN), "B": (OUT, 2)}),),
    "randlora": (Sample({"lambda": (2, 4), "gamma": (4, IN), "A": (2, 1, IN), "B": (OUT, 4, 2)}),),
    "replaced": (Sample({"weight": (OUT, IN)}),),
    "road": (Sample({"theta": (OUT // 2,), "alpha": (OUT // 2,)}, {"variant": "road_1", "group_size": 4}),),
    "shira": (Sample({"weight": (5,), "indices": np.array([[0, 1, 5, 11, 3], [0, 2, 2, 7, 1]])}),),
    "unilora": (
        Sample(
            {"theta": (5,), "scales_A": (2, IN), "scales_B": (OUT, 2)}
            | {"indices_A": np.arange(2 * IN).reshape(2, IN) % 5, "indices_B": np.arange(2 * OUT).reshape(OUT, 2) % 5}
        ),
    ),
    "vblora": (Sample({"logits_A": (2, IN // 4, 6), "logits_B": (OUT // 4, 2, 6), "bank": (6, 4)}, {"topk": 2}),),
    "vera": (Sample({"lambda_b": (OUT,), "lambda_d": (3,), "B": (OUT, 3), "A": (3, IN)}),),
    "waveft": (Sample({"spectrum": (10,)}, {"random_loc_seed": 7}),),
}
