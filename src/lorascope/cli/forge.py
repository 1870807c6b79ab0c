"""``lorascope forge``: train a zoo of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.forge.run import ForgeResult


def forge(
    recipe: Annotated[
        str,
        typer.Argument(
            help="What to train, such as digits-vit; another name lists all recipes. Or a Python file with a recipe "
            "of your own, which is executed.",
            metavar="RECIPE",
        ),
    ],
    count: Annotated[int, typer.Option(help="How many adapters the zoo is to hold.", min=1)] = 100,
    out: Annotated[str | None, typer.Option(help="Folder of the zoo. Not needed with --plan.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Fix a setting that would be drawn, or NAME='a|b': one of several; may be repeated.",
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of adapter: the same as --set kind=KIND.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="What trains: cpu, cuda (the workers take the devices in turn), cuda:1, mps or xpu."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the products in training: float32 or bfloat16.  [default: float32]")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Take finished adapters out of the batch: equal to rounding, not to the bit.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each.  [default: one per core, or per device]", min=1)
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print time, memory, disk and the space; train nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the zoo that is there and begin again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a zoo of LoRA adapters, many at once over one base.

    The base is frozen, and every label measured. A run that was interrupted or killed goes on where it stopped when the
    same command is given again, and a larger --count extends a zoo. The zoo does not depend on --workers. Under
    `torchrun -m lorascope forge ...` or `accelerate launch -m lorascope forge ...` the processes share the work.

    Example:  lorascope forge digits-vit --count 1000 --out zoo --seed 0 --set rank=8
    """
    from lorascope.cli.output import print_json, progress
    from lorascope.errors import ForgeError, OutputError
    from lorascope.forge.launch import team, usual_workers
    from lorascope.forge.planning import plan as plan_of
    from lorascope.forge.recipe_file import find_recipe
    from lorascope.forge.run import forge as run

    settings: dict[str, str] = {}
    for given in set_ or []:
        name, equals, value = given.partition("=")
        if not equals or name in settings:
            raise ForgeError(
                "a setting is given twice" if equals else "a setting has no value",
                key="--set",
                expected="NAME=VALUE, each name once",
                found=given,
            )
        settings[name] = value
    given = {"kind": kind, "device": device, "precision": precision, "fast": "1" if fast else None}
    for name, value in given.items():
        if value is not None and settings.setdefault(name, value) != value:
            raise ForgeError("is given twice", key=f"--{name}", expected=f"--set {name}={value}", found=settings[name])
    together = team()
    processes = workers or usual_workers(settings.get("device", "cpu"), together)
    if plan:
        planned = plan_of(recipe, count, seed=seed, settings=settings, workers=processes)
        print_json(planned) if json else _print_plan(planned)
        return
    find_recipe(recipe)  # another name is answered with those that there are
    if out is None:
        raise OutputError("no folder to write the zoo to", key="--out", hint="add --out ZOO, or --plan")
    try:
        with progress(f"forging {recipe}", count) as advance:
            result = run(
                recipe,
                count,
                out,
                seed=seed,
                settings=settings,
                workers=processes,
                fresh=fresh,
                on_progress=advance,
                on_base=lambda: typer.echo(f"making the base model, once: it is kept in {out}/base", err=True),
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {out} is whole, and the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    if not together.is_first:
        return
    print_json(result.as_dict()) if json else _print_result(result)


_FEW = 12  # adapters, below which there is nothing to learn from


def _print_result(result: ForgeResult) -> None:
    from lorascope.cli.output import console
    from lorascope.formats import read
    from lorascope.report.numbers import counted
    from lorascope.zoo import Zoo

    there = f", {result.already_there} were there already" if result.already_there else ""
    seconds = result.seconds - result.base_seconds
    base = f" after {result.base_seconds:.0f} s for the base" if result.base_seconds >= 1 else ""
    rate = f", {_rate(result.per_minute)} a minute" if result.forged else ""
    out = console()
    zoo = Zoo.open(result.zoo)
    rows = zoo.rows()
    out.print(
        f"{result.zoo}: {counted(len(rows), 'adapter')} ({result.forged} forged in {seconds:.0f} s{rate}{base}{there})",
        markup=False,
    )
    if result.diverged:
        out.print(f"{result.diverged} diverged: status 'diverged', left out of fitting", markup=False)
    sound = [row for row in rows if row["status"] == "ok"]
    if any(update.needs != "nothing" for row in sound[:1] for update in read(zoo.adapter_path(row)).values()):
        out.print("ΔW of this kind is relative to the base: `fit` cannot read it from the files alone", markup=False)
    elif len(sound) >= _FEW:
        target = zoo.labels()[0]
        out.print(f"next: lorascope fit {result.zoo} --target {target} --model ridge --out predictor", markup=False)


def _rate(per_minute: float) -> str:
    """Never 0: large models take minutes for an adapter.

    >>> _rate(141.4), _rate(0.4512), _rate(9.96)
    ('141', '0.45', '10')
    """
    return f"{per_minute:.0f}" if per_minute >= 10 else f"{per_minute:.2g}"


def _print_plan(planned: dict[str, Any]) -> None:
    from rich.table import Table

    from lorascope.cli.output import console
    from lorascope.report.numbers import counted

    out = console()
    minutes, seconds = divmod(round(planned["seconds"]), 60)
    out.print(f"{planned['recipe']}: {planned['about']}", markup=False)
    out.print(f"{counted(planned['count'], 'adapter')}, {counted(planned['workers'], 'worker')}", markup=False)
    out.print(
        f"time    about {minutes} min {seconds} s, and the base "
        f"({_rate(planned['adapters_per_minute_per_core'])} adapters a minute and core, "
        f"{planned['milliseconds_per_adapter_step']:.2f} ms per adapter and step)",
        markup=False,
    )
    memory = planned["memory_bytes"]
    out.print("memory  unknown" if memory is None else f"memory  about {memory / 1e6:.0f} MB", markup=False)
    out.print(f"disk    {planned['disk_bytes'] / 1e6:.1f} MB", markup=False)
    table = Table("setting", "from", "role", "what", box=None, pad_edge=False)
    for name, entry in planned["space"].items():
        table.add_row(name, entry["from"], entry["role"], entry["about"])
    out.print(table)
