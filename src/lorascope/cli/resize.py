"""``lorascope resize``: an adapter of lower ranks, with the error of what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorascope.cli.options import Overwrite

if TYPE_CHECKING:
    from lorascope.adapter import Adapter


def resize(
    source: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Adapter file, folder or hub id.", show_default=False)
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="A new folder for peft and mlx, else a file.", show_default=False)
    ],
    rank: Annotated[int | None, typer.Option(help="Largest rank of a site.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of Σ σ² of each site.", show_default=False)
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Keep singular values of at least this share of σ₁.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Leave at most this relative error at each site.", show_default=False)
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="PARAMETERS", help="Parameters of the result, shared among the sites best.", show_default=False
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="The format to write; `lorascope formats` lists them.", show_default="as ADAPTER, or peft"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype of the factors.", show_default="as stored")] = None,
    scale: Annotated[
        float | None, typer.Option(help="The scale of sites whose scale ADAPTER does not state.", show_default=False)
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option(
            "--allow-loss",
            help="Leave sites unchanged that only the base could cut (DoRA, OFT), take doubtful updates as read, and "
            "leave out what the format cannot hold.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Cut an adapter to lower ranks with the least error.

    No matrix of its rank is nearer to a site than what is written. Where several limits are given, the smallest rank
    counts. A budget is shared among all sites by what each direction is worth for its parameters; sites that get
    nothing are left out and counted.

        lorascope resize adapter/ -o small/ --rank 8

        lorascope resize style.safetensors -o small.safetensors --error 0.05

        lorascope resize adapter/ -o small/ --budget 1000000 --dtype float16
    """
    from pathlib import Path

    from lorascope.cli.options import cut_of
    from lorascope.cli.output import console, print_json, progress
    from lorascope.compress import resize as resized_of
    from lorascope.conversion import convert
    from lorascope.formats import format_named
    from lorascope.formats.output_name import check_output, chosen_format
    from lorascope.report.resizes import resized_as_dict, resized_as_text

    cut = cut_of(rank=rank, energy=energy, ratio=ratio, error=error)
    adapter = _given(source, scale)
    to = chosen_format(Path(output), to, [adapter], _own_format(adapter))
    check_output(Path(output), format_named(to), is_overwritten=overwrite)
    with progress("resizing sites", len(adapter)) as advance:
        result = resized_of(adapter, cut, budget=budget, dtype=dtype, is_loss_allowed=allow_loss, advance=advance)
    written = convert(result.adapter, output, to=to, is_loss_allowed=allow_loss, is_overwritten=overwrite)
    if as_json:
        print_json(resized_as_dict(result, written))
    else:
        resized_as_text(result, written, console())


def _own_format(adapter: Adapter) -> str:
    """The format of the source where plain factors can be written to it, else PEFT."""
    from lorascope.formats import formats

    own = adapter.provenance.format
    return own if any(one.name == own and one.write and "lora" in one.writes for one in formats()) else "peft"


def _given(location: str, scale: float | None) -> Adapter:
    """The adapter, with the scale given where its file states none."""
    from lorascope.formats import read
    from lorascope.formats.given_scale import is_scale_open, with_given_scale

    adapter = read(location)
    return with_given_scale(adapter, scale) if scale is not None and is_scale_open(adapter) else adapter
