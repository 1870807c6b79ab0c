"""The whole way on real data: forge a zoo, fit models on it, attack them, and predict for an adapter never seen.

python examples/demo.py            # what `make demo` runs; interrupted, it goes on where it stopped
python examples/demo.py --count 64 --seeds 2 --folder /tmp/demo
"""

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the forge uses one process per core

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset, Predictor, fit_predictor
from lorascope.predict.predictor import Evaluation, usable
from lorascope.zoo import Zoo

TARGETS = {"classes": ("auroc", "accuracy"), "test_accuracy": ("r2", "kendall_tau", "mae")}
MODEL_NAMES = ("glnet", "kernels", "mlp", "hyperparameters")
is_terminal = Console().is_terminal
screen = Console(highlight=False, width=None if is_terminal else 100)


def main() -> None:
    """Parse, run, explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=320, help="how many adapters to forge")
    parser.add_argument("--seeds", type=int, default=3, help="how many times to fit each model")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the zoo and predictors go")
    arguments = parser.parse_args()
    start = time.monotonic()
    heading(f"1  Forging {arguments.count} LoRA adapters")
    say(
        "Each is a finetune of one small vision transformer on another subset of real handwritten digits, with its "
        "own learning rate, steps, label noise and initialisation."
    )
    zoo = forge_zoo(arguments.folder / "zoo", arguments.count)
    dataset = Dataset.of(zoo)

    heading("2  Reading knowledge out of the weights")
    parts = {split: len(dataset.where(split)) for split in ("train", "validation", "test")}
    say(
        "Which digits was an adapter trained on, and how accurate is it? Learning from "
        f"{parts['train'] + parts['validation']} adapters, testing on {parts['test']} others, {arguments.seeds} seeds. "
        "Then every test adapter is put into a random gauge (B M⁻¹, M A): other numbers, the same finetune."
    )
    rows = fit(dataset, list(TARGETS), MODEL_NAMES, arguments.seeds)
    for target, metrics in TARGETS.items():
        show_table([row for row in rows if row.clean.target == target], metrics)

    heading("3  Why raw weights deceive")
    say(
        "The mlp on raw factors learned nothing, since each adapter starts from its own random A. In a zoo where all "
        "start from one shared A it seems to work, until the gauge changes."
    )
    count = max(arguments.count // 2, 48)
    shared = forge_zoo(arguments.folder / "zoo-shared", count, init="shared")
    show_table(fit(Dataset.of(shared), ["classes"], ("mlp", "kernels"), arguments.seeds), ("auroc", "accuracy"))

    heading("4  One adapter that no model has seen")
    show_unseen(zoo, dataset, {row.clean.target: row for row in rows if row.label == "kernels"})
    for row in rows:
        if row.label == "kernels":
            row.predictor.save(arguments.folder / f"kernels-{row.clean.target}")
    show_next(arguments.folder, time.monotonic() - start)


def heading(text: str) -> None:
    """A bold line."""
    screen.print(f"[bold]{text}[/bold]")


def say(text: str) -> None:
    """An indented paragraph."""
    screen.print(Padding(text, (0, 0, 0, 3)))


def bar() -> Progress:
    """A progress bar with the time left."""
    columns = (TextColumn("   {task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True, disable=not is_terminal)


def forge_zoo(path: Path, count: int, **settings: Any) -> Zoo:
    """Forge (or go on forging) a zoo."""
    start = time.monotonic()
    with bar() as progress:
        task = progress.add_task("forging", total=count)
        workers = os.cpu_count() or 1
        advance = lambda n: progress.advance(task, n)  # noqa: E731  a name keeps the line below readable
        forge("digits-vit", count, path, seed=0, settings=settings, workers=workers, on_progress=advance)
    zoo = Zoo.open(path)
    say(f"{len(zoo.rows())} adapters in {path}  ({time.monotonic() - start:.0f} s)\n")
    return zoo


class Fitted(NamedTuple):
    """A model on a target: its predictor, evaluated on the test adapters as they are and in random gauges."""

    label: str
    predictor: Predictor
    clean: Evaluation
    gauged: Evaluation


def fit(dataset: Dataset, targets: list[str], names: tuple[str, ...], seeds: int) -> list[Fitted]:
    """Fit every model to every target and evaluate it, as it is and in random gauges."""
    rows = []
    with bar() as progress:
        task = progress.add_task("fitting", total=len(names) * len(targets))
        for target in targets:
            test = dataset.subset(usable(dataset.values(target), dataset.where("test")))
            for name in names:
                model: Any = MODELS[name]()
                predictor = fit_predictor(dataset, target, model, seeds=range(seeds))
                clean, gauged = (
                    predictor.evaluate(model.inputs(some.samples, predictor.structure), test.values(target))
                    for some in (test, test.in_random_gauge(condition=100.0))
                )
                rows.append(Fitted(name, predictor, clean, gauged))
                progress.update(task, advance=1, description=f"fitted {name} to {target}")
    return rows


def show_table(rows: list[Fitted], metrics: tuple[str, ...]) -> None:
    """Test metrics as they are, and what a random gauge leaves of the first."""
    first = rows[0].clean
    table = Table(title=f"{first.target} ({first.task}): {first.n} test adapters, mean ± sd over seeds")
    table.add_column("model", no_wrap=True)
    table.add_column("invariant to")
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"{metrics[0]}, random gauge", justify="right")
    for row in rows:
        cells = [plus_minus(row.clean.metrics[name]) for name in metrics]
        left = plus_minus(row.gauged.metrics[metrics[0]])
        table.add_row(row.label, row.predictor.model.invariance, *cells, left)
    screen.print(Padding(table, (0, 0, 1, 3)))


def plus_minus(value: Mapping[str, float]) -> str:
    """Mean and spread; a dash where they are not defined."""
    mean, sd = value["mean"], value["sd"]
    if mean != mean:
        return "–"
    return f"{mean:.3f}" if sd != sd else f"{mean:.3f} ± {sd:.3f}"


def show_unseen(zoo: Zoo, dataset: Dataset, kernels: Mapping[str, Fitted]) -> None:
    """Predict the facts of one adapter of the test split and compare with the truth."""
    truth = zoo.split("test")[0]
    sample = dataset.samples[dataset.ids.index(truth["id"])]
    [classes] = kernels["classes"].predictor.predict([sample])
    [accuracy] = kernels["test_accuracy"].predictor.predict([sample])
    say(f"{truth['path']}, of the test split, judged by kernels from its weights alone.")
    table = Table()
    for column in ("fact", "predicted", "how sure", "truth"):
        table.add_column(column)
    probabilities = classes.probabilities or {}
    sure = "  ".join(f"P({name}) {share:.2f}" for name, share in probabilities.items())
    table.add_row("trained on digits", listed(classes.value), sure, listed(truth["classes"]))
    interval = "–" if accuracy.interval is None else "90 % in [{:.3f}, {:.3f}]".format(*accuracy.interval)
    table.add_row("test accuracy", f"{accuracy.value:.3f}", interval, f"{truth['test_accuracy']:.3f}")
    screen.print(Padding(table, (0, 0, 0, 3)))
    wrong = sorted(set(classes.value) ^ set(truth["classes"]))
    verdict = f"{10 - len(wrong)} of 10 digits judged right" + (f" (wrong on {listed(wrong)})" if wrong else "")
    if accuracy.interval is not None:
        low, high = accuracy.interval
        verdict += f"; the accuracy lies {'in' if low <= truth['test_accuracy'] <= high else 'out'}side the interval"
    say(verdict + ".\n")


def listed(labels: list[int]) -> str:
    """The labels with spaces between."""
    return " ".join(map(str, labels)) or "none"


def show_next(folder: Path, seconds: float) -> None:
    """What to try on one's own files."""
    heading(f"5  Your turn  (all this took {seconds:.0f} s)")
    command = ".venv/bin/lorascope" if Path(".venv/bin/lorascope").exists() else "lorascope"
    example = sorted((folder / "zoo" / "adapters").iterdir())[0]
    for line in (
        f"{command} inspect {example}",
        f"{command} inspect YOUR_ADAPTER_FILE_OR_FOLDER",
        f"{command} predict {folder}/kernels-classes {example} --json",
        f"{command} zoo import YOUR_FOLDER --labels YOUR_LABELS.csv --out my-zoo",
        f"{command} fit my-zoo --target YOUR_LABEL --out my-predictor",
        f"{command} bench my-zoo --out my-bench",
    ):
        screen.print(f"   {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
