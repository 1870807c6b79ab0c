"""A small data set whose labels are planted in the weights: for tests of models without a forge.

Each site has ten directions on its output side; the labels are those that its column spaces contain, and a number that
depends on the norms. The row spaces are noise, as they are in LoRAs that start with B = 0.
"""

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import Dataset, Sample

SITES = {"layers.0.q": (14, 10), "layers.0.v": (14, 10), "layers.1.q": (12, 9)}


def planted_adapter(rng, labels, size, *, rank=None, dtype=np.float32):
    """An adapter whose column spaces hold the planted directions of the labels."""
    directions = {
        name: np.linalg.qr(np.random.default_rng(99).standard_normal((out, out)))[0] for name, (out, _) in SITES.items()
    }
    rank = rank or max(2, len(labels))
    sites = {}
    for name, (out, in_) in SITES.items():
        B = 0.1 * rng.standard_normal((out, rank))
        B[:, : len(labels)] += directions[name][:, list(labels)] * rng.uniform(0.8, 1.2, len(labels))
        A = rng.standard_normal((rank, in_)) / np.sqrt(in_)
        mix = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
        sites[name] = LowRank((size * B @ mix).astype(dtype), (mix.T @ A).astype(dtype), scale=0.5)
    return Adapter(sites)


def planted_dataset(n=150, seed=0, *, rank=None, dtype=np.float32):
    """``classes`` (multi-label of 6), ``first`` (binary), ``kind`` (words), ``size`` (a number)."""
    rng = np.random.default_rng(seed)
    adapters, classes, sizes, rates = [], [], [], []
    for _ in range(n):
        labels = sorted(rng.choice(6, size=rng.integers(1, 5), replace=False).tolist())
        size = float(np.exp(rng.normal()))
        adapters.append(planted_adapter(rng, labels, size, rank=rank, dtype=dtype))
        classes.append(labels)
        sizes.append(np.log(size) + 0.05 * rng.normal())
        rates.append(float(size * np.exp(0.5 * rng.normal())))
    splits = ["test" if i % 5 == 0 else "train" for i in range(n)]
    return Dataset(
        samples=tuple(
            Sample(lambda a=a: a, {"rate": r, "optimiser": "adam" if r > 1 else "sgd", "seed": i})
            for i, (a, r) in enumerate(zip(adapters, rates, strict=True))
        ),
        labels={
            "classes": classes,
            "first": [0 in labels for labels in classes],
            "kind": ["many" if len(labels) > 2 else ("one" if len(labels) == 1 else "two") for labels in classes],
            "size": sizes,
        },
        groups=tuple(f"group-{i}" for i in range(n)),
        splits=tuple(splits),
        ids=tuple(f"adapter-{i}" for i in range(n)),
        hyperparameters=("rate", "optimiser", "seed"),
        digest="planted",
    )
