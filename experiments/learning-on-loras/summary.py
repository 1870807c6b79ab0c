"""One table for each zoo, from the benches in the folders beside this file: models by targets, the main metric of each.

    python experiments/learning-on-loras/summary.py        # writes summary.md

Two results of one zoo (``digits``, ``digits-networks``, of other seeds) are two tables. The best of a target is bold,
with a dagger what lies within one standard deviation of it (the larger of both), or whose paired difference to the best
has an interval that holds zero.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
ORDER = ("kernels", "gram", "tokens", "probes", "ridge", "logistic", "delta-kernel", "glnet", "dense", "o-align", "svd",
         "spectral", "augmented-mlp", "mlp")  # fmt: skip
METRICS = {"auroc": "AUROC", "r2": "R²"}


def cell(row, best, metric):
    """Mean and spread of a row, marked."""
    if row is None or metric not in (row["metrics"] or {}):
        return "–"
    own, first = row["metrics"][metric], best["metrics"][metric]
    text = f"{own['mean']:.3f}" + ("" if own["sd"] is None else f" ± {own['sd']:.3f}")
    if row is best:
        return f"**{text}**"
    paired = row.get("to_best") or {}
    holds_zero = paired.get("low") is not None and paired["low"] <= 0 <= paired["high"]
    is_near = first["mean"] - own["mean"] <= max(own["sd"] or 0.0, first["sd"] or 0.0)
    return text + (" †" if is_near or holds_zero else "")


def grid(tables):
    """The tables of one zoo as one, a column for each target."""
    labels = dict.fromkeys(row["label"] for table in tables for row in table["rows"])
    models = [name for name in ORDER if name in labels]
    rest = [name for name in labels if name not in models]
    head = [f"{table['target']}: {METRICS[table['metric']]}" for table in tables]
    lines = ["| model | " + " | ".join(head) + " |", "|---|" + "---|" * len(tables)]
    for label in [*models, *rest]:
        cells = []
        for table in tables:
            rows = {row["label"]: row for row in table["rows"]}
            role = rows[label]["role"] if label in rows else "model"
            cells.append(cell(rows.get(label), rows[table["best"]], table["metric"]))
        lines.append(f"| {label if role == 'model' else f'*{label}*'} | " + " | ".join(cells) + " |")
    return lines


def attacked(tables, label):
    """What one model scores under each attack, a row for each target."""
    rows = [(table, next((row for row in table["rows"] if row["label"] == label), None)) for table in tables]
    columns = list(dict.fromkeys(name for _, row in rows if row for name in row["columns"]))
    if not columns:
        return []
    lines = [
        f"| `{label}`, attacked | unattacked | " + " | ".join(columns) + " |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for table, row in rows:
        if row is None:
            continue
        before = next(iter(row["columns"].values()))["facts"].get("before", {}).get("mean")
        cells = []
        for name in columns:
            one = row["columns"].get(name, {"score": None})
            cells.append("–" if one["score"] is None else f"{one['score']['mean']:.3f}")
        start = "–" if before is None else f"{before:.3f}"
        lines.append(f"| {table['target']}: {METRICS[table['metric']]} | {start} | " + " | ".join(cells) + " |")
    return ["", *lines]


def main():
    """Read, print and write."""
    parts = ["# Summary", "", "† within one standard deviation of the best, or its paired interval holds zero."]
    for path in sorted(HERE.glob("*/results.json")):
        result = json.loads(path.read_text())
        for zoo in dict.fromkeys(table["zoo"] for table in result["tables"]):
            tables = [table for table in result["tables"] if table["zoo"] == zoo]
            first = tables[0]
            parts += ["", f"## {path.parent.name}: {first['taught']} to learn from, {first['tested']} tested, "
                      f"{len(result['seeds'])} seeds", "", *grid(tables), *attacked(tables, "kernels")]  # fmt: skip
    text = "\n".join(parts) + "\n"
    (HERE / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
