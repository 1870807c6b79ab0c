"""The whole way on real data: forge a zoo, fit models on it, attack them, and predict for an adapter never seen.

    python examples/demo.py            # what `make demo` runs; interrupted, it goes on where it stopped
    python examples/demo.py --count 64 --seeds 2 --folder /tmp/demo
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the forge uses one process per core

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset
from lorascope.predict.comparison import Comparison, compare_models
from lorascope.zoo import Zoo

TARGETS = {"classes": ("auroc", "accuracy"), "test_accuracy": ("r2", "kendall_tau", "mae")}
MODEL_NAMES = ("glnet", "ridge", "mlp", "hyperparameters")
screen = Console(highlight=False, width=min(110, Console().width))


def main() -> None:
    """Parse, run, explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=320, help="how many adapters to forge")
    parser.add_argument("--seeds", type=int, default=3, help="how many times to fit each model")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the zoo and predictors go")
    arguments = parser.parse_args()
    start = time.monotonic()
    zoo = forge_zoo(arguments.folder / "zoo", arguments.count)
    rows = fit_models(Dataset.of(zoo), arguments.seeds)
    show_tables(rows)
    show_unseen(zoo, rows)
    for row in rows:
        if row.label == "ridge":
            row.predictor.save(arguments.folder / f"ridge-{row.clean.target}")
    show_next(arguments.folder, time.monotonic() - start)


def bar() -> Progress:
    """A progress bar with the time left."""
    columns = (TextColumn("  {task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True)


def forge_zoo(path: Path, count: int) -> Zoo:
    """Forge (or go on forging) the zoo."""
    screen.print(
        f"[bold]1  Forging {count} LoRA adapters[/bold] of a small vision transformer, each finetuned on another\n"
        "   subset of real handwritten digits, with its own learning rate, steps and label noise."
    )
    start = time.monotonic()
    with bar() as progress:
        task = progress.add_task("forging", total=count)
        workers = os.cpu_count() or 1
        forge("digits-vit", count, path, seed=0, workers=workers, on_progress=lambda n: progress.advance(task, n))
    zoo = Zoo.open(path)
    screen.print(f"   {len(zoo.rows())} adapters in {path} ({time.monotonic() - start:.0f} s)\n")
    return zoo


def fit_models(dataset: Dataset, seeds: int) -> list[Comparison]:
    """Fit every model to both targets and evaluate it, clean and in random gauges."""
    parts = {split: len(dataset.where(split)) for split in ("train", "validation", "test")}
    screen.print(
        "[bold]2  Reading knowledge out of the weights[/bold]: which digits was an adapter trained on, and how accurate\n"
        f"   is it? {parts['train']} adapters to learn from, {parts['validation']} to validate, {parts['test']} to test, "
        f"{seeds} seeds. Then every\n   test adapter is put into a random gauge (B M⁻¹, M A): other numbers, the same "
        "finetune."
    )
    models = {name: MODELS[name]() for name in MODEL_NAMES}
    with bar() as progress:
        task = progress.add_task("fitting", total=len(models) * len(TARGETS))
        rows = []
        for row in compare_models(dataset, list(TARGETS), models, seeds=range(seeds)):
            progress.update(task, advance=1, description=f"fitted {row.label} to {row.clean.target}")
            rows.append(row)
    return rows


def show_tables(rows: list[Comparison]) -> None:
    """One table per target: test metrics as they are, and what a random gauge leaves of the first."""
    for target, metrics in TARGETS.items():
        chosen = [row for row in rows if row.clean.target == target]
        table = Table(title=f"{target} ({chosen[0].clean.task}), {chosen[0].clean.n} test adapters, mean ± sd over seeds")
        table.add_column("model")
        table.add_column("invariant to")
        for name in metrics:
            table.add_column(name, justify="right")
        table.add_column(f"{metrics[0]} in random gauge", justify="right")
        for row in chosen:
            cells = [plus_minus(row.clean.metrics[name]) for name in metrics]
            left = plus_minus(row.gauged.metrics[metrics[0]])
            table.add_row(row.label, row.predictor.model.invariance, *cells, left)
        screen.print(table)
    screen.print()


def plus_minus(value: dict[str, float]) -> str:
    """Mean and spread; a dash where they are not defined."""
    mean, sd = value["mean"], value["sd"]
    if mean != mean:
        return "–"
    return f"{mean:.3f}" if sd != sd else f"{mean:.3f} ± {sd:.3f}"


def show_unseen(zoo: Zoo, rows: list[Comparison]) -> None:
    """Predict the facts of one adapter of the test split and compare with the truth."""
    truth = zoo.split("test")[0]
    dataset = Dataset.of(zoo)
    sample = dataset.samples[dataset.ids.index(truth["id"])]
    by_target = {row.clean.target: row.predictor for row in rows if row.label == "ridge"}
    [classes] = by_target["classes"].predict([sample])
    [accuracy] = by_target["test_accuracy"].predict([sample])
    screen.print(f"[bold]3  One adapter that no model has seen[/bold]: {truth['path']}, judged by ridge from its weights alone.")
    table = Table()
    for column in ("fact", "predicted", "how sure", "truth"):
        table.add_column(column)
    probabilities = classes.probabilities or {}
    sure = " ".join(f"{name}:{share:.2f}" for name, share in probabilities.items())
    table.add_row("trained on digits", listed(classes.value), f"P {sure}", listed(truth["classes"]))
    interval = "–" if accuracy.interval is None else "90 % in [{:.3f}, {:.3f}]".format(*accuracy.interval)
    table.add_row("test accuracy", f"{accuracy.value:.3f}", interval, f"{truth['test_accuracy']:.3f}")
    screen.print(table)
    wrong = set(classes.value) ^ set(truth["classes"])
    inside = accuracy.interval is not None and accuracy.interval[0] <= truth["test_accuracy"] <= accuracy.interval[1]
    screen.print(
        f"   {10 - len(wrong)} of 10 digits judged right"
        + (f" (wrong on {listed(sorted(wrong))})" if wrong else "")
        + f"; the accuracy lies {'inside' if inside else 'outside'} the interval.\n"
    )


def listed(labels: list[int]) -> str:
    """The labels with spaces between."""
    return " ".join(map(str, labels)) or "none"


def show_next(folder: Path, seconds: float) -> None:
    """What to try on one's own files."""
    bin_ = Path(os.environ.get("VIRTUAL_ENV", ".venv")) / "bin" / "lorascope"
    command = str(bin_) if bin_.exists() else "lorascope"
    example = next((folder / "zoo" / "adapters").iterdir())
    screen.print(f"[bold]4  Your turn[/bold] (this took {seconds:.0f} s)")
    for line in (
        f"{command} inspect {example}",
        f"{command} inspect YOUR_ADAPTER_FILE_OR_FOLDER",
        f"{command} predict {folder}/ridge-classes {example} --json",
        f"{command} zoo import YOUR_FOLDER --labels YOUR_LABELS.csv --out my-zoo",
        f"{command} fit my-zoo --target YOUR_LABEL --model ridge --out my-predictor",
    ):
        screen.print(f"   {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
