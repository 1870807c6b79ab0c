"""``lorascope bench``: models side by side on zoos, with baselines, under attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.predict.model import Model


def bench(
    zoos: Annotated[list[Path], typer.Argument(metavar="ZOO…", help="Zoos, from `forge` or `zoo import`.")],
    targets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Label columns.  [default: all that pose a task]")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Models; `lorascope models` lists them.  [default: all]"),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="MODEL.NAME=VALUE", help="An option of a model.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many members of each model.")] = 5,
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|none",
            help="Among fp16, gauge, int8, noise, padding and unseen-range.  [default: all]",
        ),
    ] = None,
    attack_seeds: Annotated[int, typer.Option(min=1, max=100, help="How many of the members are attacked.")] = 2,
    range_of: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Hyperparameter of unseen-range.  [default: learning_rate, or the first]"),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="NAME=ZOO", help="Let the same members judge another zoo too; repeatable."),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="A file of `lorascope zoo split --out`.  [default: the split of the zoo]")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave damaged adapters out, and count them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for tables, results, splits and plots; an interrupted bench goes on from it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare models on zoos, with baselines and under attacks.

    Metrics are over seeds; exits with 2 if a model broke. The test part of a zoo teaches no model. Rows of baselines
    come by themselves: hyperparameters, norms, and a model taught with shuffled labels, whose score shows leakage.
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.predict.bench import Plan, attack_names, cells_of
    from lorascope.predict.bench import bench as run
    from lorascope.predict.bench.record import CELLS, check_folder, splitting_of, write_record
    from lorascope.predict.soundness import open_dataset
    from lorascope.report.bench import bench_as_text, import_matplotlib, write_reports
    from lorascope.zoo import Zoo

    chosen = _models(_listed(models, "--models"), option or [])
    if out is not None:
        import_matplotlib()
        check_folder(out)
    opened = {name: Zoo.open(path, splits=splits) for name, path in _named(zoos).items()}
    others = {name: Zoo.open(path) for name, path in _pairs(also or []).items()}
    with progress("looking at adapters", sum(map(len, (*opened.values(), *others.values())))) as looked:
        datasets, other_datasets = (
            {name: open_dataset(zoo, skip_damaged=skip_damaged, advance=looked) for name, zoo in some.items()}
            for some in (opened, others)
        )
    plan = Plan(
        chosen,
        _listed(targets, "--targets"),
        range(seeds),
        [] if attacks == "none" else _listed(attacks, "--attacks") or attack_names(),
        attack_seeds,
        range_of,
        other_datasets,
    )
    with progress("fitting members", cells_of(datasets, plan)) as done:
        result = run(datasets, plan, cells=None if out is None else out / CELLS, done=done)
    paths: list[Path] = []
    if out is not None:
        splittings = {name: splitting_of(zoo, datasets[name]) for name, zoo in opened.items()}
        paths = [*write_record(result, splittings, out), *write_reports(result, out)]
    if as_json:
        print_json(result.as_dict())
    else:
        screen = console()
        bench_as_text(result, screen)
        if paths:
            screen.print("written: " + ", ".join(map(str, paths)), soft_wrap=True)
    if result.has_failed:
        raise typer.Exit(2)


def _listed(text: str | None, option: str) -> list[str] | None:
    """The names between commas; None where the option was not given, which means all of them."""
    from lorascope.errors import LorascopeError

    if text is None:
        return None
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise LorascopeError("names nothing", key=option, expected="one name or more, or no such option: all of them")
    return names


def _models(names: list[str] | None, settings: list[str]) -> dict[str, Model]:
    """Label → model with its options."""
    from lorascope.cli.options import with_options
    from lorascope.errors import LorascopeError
    from lorascope.predict import MODELS

    chosen = MODELS.names() if names is None else names
    own: dict[str, list[str]] = {name: [] for name in chosen}
    for setting in settings:
        model, dot, rest = setting.partition(".")
        if not dot or model not in own:
            raise LorascopeError(
                "is no option of a model that is compared",
                key=setting,
                expected=f"MODEL.NAME=VALUE with MODEL one of {', '.join(chosen)}",
            )
        own[model].append(rest)
    return {name: with_options(MODELS[name], given) for name, given in own.items()}


def _pairs(texts: list[str]) -> dict[str, Path]:
    from lorascope.errors import LorascopeError

    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path or name in found:
            raise LorascopeError("is not a name and a zoo", key=f"--also {text}", expected="NAME=ZOO, each name once")
        found[name] = Path(path)
    return found


def _named(zoos: list[Path]) -> dict[str, Path]:
    """Zoos by the names of their folders, or by their paths where two folders are called alike."""
    names: Any = [path.resolve().name for path in zoos]
    is_clear = len(set(names)) == len(zoos)
    return {name if is_clear else str(path): path for name, path in zip(names, zoos, strict=True)}
