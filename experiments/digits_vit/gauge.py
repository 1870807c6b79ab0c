"""How far predictions move when the same finetune is written in another gauge, in float64 and in float32.

    python experiments/digits_vit/gauge.py           # on the zoo of run.py; about 3 minutes

Every test adapter is acted on by a random GL(rank) of condition number 100 at each site. In float64 the factors are
stored as computed; in float32 they are rounded as a file would hold them. Moves are in standard deviations of the
target (regression) or in units of probability; adapters that move by more than 1e-4 are listed with the condition
of their factors.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.progress import track

from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.testing import product_condition

HERE = Path(__file__).parent


def values(predictor, dataset):
    """[n, width]: the first member's scores (standardised values, or logits through the calibration)."""
    inputs = predictor.model.inputs(dataset.samples, predictor.structure)
    member = predictor.members[0]
    return member.calibration.predict(predictor.target, member.fitted.scores(inputs))


def main():
    """Fit, move, measure, write."""
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    dataset = Dataset.of(home / "digits-vit-own-1000")
    test = dataset.subset(dataset.where("test"))
    moved = {dtype: test.in_random_gauge(condition=100.0, seed=7, dtype=dtype) for dtype in ("float64", "float32")}
    conditions = [
        max(product_condition(*update.factors(np.float64)[:2]) for update in sample.read().values())
        for sample in test.samples
    ]
    rows = []
    for name, target in track([(n, t) for n in ("ridge", "glnet", "svd", "mlp") for t in ("classes", "test_accuracy")]):
        predictor = fit_predictor(dataset, target, MODELS[name]())
        unit = 1.0 if predictor.target.is_classification else predictor.target.spread
        clean = values(predictor, test)
        row = {"model": name, "target": target}
        for dtype, other in moved.items():
            move = np.abs(values(predictor, other) - clean).max(axis=1) / unit
            row[dtype] = {
                "median": float(np.median(move)),
                "q99": float(np.quantile(move, 0.99)),
                "max": float(move.max()),
            }
            if name != "mlp":
                row[dtype]["above_1e-4"] = [
                    {"id": test.ids[i], "move": float(move[i]), "condition": float(conditions[i])}
                    for i in np.flatnonzero(move > 1e-4)
                ]
        rows.append(row)
    result = {"command": "python experiments/digits_vit/gauge.py", "n": len(test), "condition_of_M": 100, "rows": rows}
    (HERE / "gauge.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
