"""``lorascope serve-pack``: adapters in the shapes that multi-adapter servers load."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def serve_pack(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER…", help="Adapters of one base; a zoo or folder stands for all in it."),
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="A new folder.", show_default=False)],
    max_rank: Annotated[int, typer.Option(min=1, help="Larger ranks are cut to it.")] = 64,
    form: Annotated[str, typer.Option(help="stacks, peft or both.")] = "both",
    dtype: Annotated[str, typer.Option(help="dtype of the factors.")] = "float16",
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take adapters that name different base models.")
    ] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out saved tensors and changes of biases.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write adapters in the shapes that servers of many load.

    These are stacks by rank with an index, and PEFT folders of one rank for vLLM, in float16 unless --dtype says
    otherwise. Sites that an adapter lacks and ranks below that of its group are filled up with zeros, which changes
    nothing; ranks above --max-rank are cut, and the error is stated.

        lorascope serve-pack a/ b/ c/ -o served/ --max-rank 32
    """
    from pathlib import Path

    from lorascope.cli.output import console, print_json, progress
    from lorascope.cli.sources import adapters_at
    from lorascope.conversion.apart import check_apart
    from lorascope.errors import LorascopeError
    from lorascope.report.served import served_as_dict, served_as_text
    from lorascope.serve import serve_pack as run

    given = adapters_at(sources)
    if not given.adapters:
        raise given.failures[0] if given.failures else LorascopeError("no adapters here", file=sources[0])
    if overwrite:
        for adapter in given.adapters:
            check_apart(adapter, adapter, Path(output))
    with progress("cutting adapters", len(given.adapters)) as advance:
        served = run(
            given.adapters,
            Path(output),
            given.names,
            max_rank=max_rank,
            form=form,  # type: ignore[reportArgumentType]  # checked where it is used
            dtype=dtype,
            is_any_base=any_base,
            is_loss_allowed=allow_loss,
            is_overwritten=overwrite,
            advance=advance,
        )
    if as_json:
        print_json(served_as_dict(served, given.failures))
    else:
        served_as_text(served, given.failures, console())
    if given.failures:
        raise typer.Exit(1)
