"""``lorascope forge``: train a zoo of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.forge.run import ForgeResult


def forge(
    recipe: Annotated[
        str, typer.Argument(help="What to train, such as digits-vit; another name lists all recipes.", metavar="RECIPE")
    ],
    count: Annotated[int, typer.Option(help="How many adapters the zoo is to hold.", min=1)] = 100,
    out: Annotated[str | None, typer.Option(help="Folder of the zoo. Not needed with --plan.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Fix a setting that would be drawn; may be repeated."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each.  [default: one per core]", min=1)
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print time, memory, disk and the space; train nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the zoo that is there and begin again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a zoo of LoRA adapters: many at once over one frozen base, with every label measured.

    A run that was interrupted or killed goes on where it stopped when the same command is given again, and a
    larger --count extends a zoo. The zoo does not depend on --workers.

    Example:  lorascope forge digits-vit --count 1000 --out zoo --seed 0 --set rank=8
    """
    import os

    from lorascope.cli.output import print_json, progress
    from lorascope.errors import ForgeError, OutputError
    from lorascope.forge.plan import plan as plan_of
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
    # the cores that this process may use, which in a container are fewer than the machine has
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = workers or usable or 1
    if plan:
        planned = plan_of(recipe, count, seed=seed, settings=settings, workers=processes)
        print_json(planned) if json else _print_plan(planned)
        return
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
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {out} is whole, and the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    print_json(result.as_dict()) if json else _print_result(result, recipe)


def _print_result(result: ForgeResult, recipe: str) -> None:
    from lorascope.cli.output import console

    there = f", {result.already_there} were there already" if result.already_there else ""
    rate = f", {60 * result.forged / result.seconds:.0f} a minute" if result.forged else ""
    out = console()
    out.print(
        f"{result.zoo}: {result.count} adapters ({result.forged} forged in {result.seconds:.0f} s{rate}{there})",
        markup=False,
    )
    if result.diverged:
        out.print(f"{result.diverged} diverged: status 'diverged', left out of fitting", markup=False)
    from lorascope.forge.recipes import RECIPES

    target = next(iter(RECIPES[recipe].labels))
    out.print(f"next: lorascope fit {result.zoo} --target {target} --model glnet --out predictor", markup=False)


def _print_plan(planned: dict[str, Any]) -> None:
    from rich.table import Table

    from lorascope.cli.output import console

    out = console()
    minutes, seconds = divmod(round(planned["seconds"]), 60)
    out.print(f"{planned['recipe']}: {planned['about']}", markup=False)
    out.print(f"{planned['count']} adapters, {planned['workers']} workers", markup=False)
    out.print(
        f"time    about {minutes} min {seconds} s, and the base "
        f"({planned['adapters_per_minute_per_core']:.0f} adapters a minute and core, "
        f"{planned['milliseconds_per_adapter_step']:.2f} ms per adapter and step)",
        markup=False,
    )
    out.print(f"memory  about {planned['memory_bytes'] / 1e6:.0f} MB", markup=False)
    out.print(f"disk    {planned['disk_bytes'] / 1e6:.1f} MB", markup=False)
    table = Table("setting", "from", "role", "what", box=None, pad_edge=False)
    for name, entry in planned["space"].items():
        table.add_row(name, entry["from"], entry["role"], entry["about"])
    out.print(table)
