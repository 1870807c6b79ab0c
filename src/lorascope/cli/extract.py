"""``lorascope extract``: an adapter from a base and a checkpoint that was tuned from it."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def extract(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A folder of safetensors weights, or one file.", show_default=False)
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The checkpoint tuned from it, likewise.", show_default=False)
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="A new folder for peft and mlx, else a file.", show_default=False)
    ],
    rank: Annotated[int | None, typer.Option(help="Largest rank of a site.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of Σ σ² of each site.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Leave at most this relative error at each site.", show_default=False)
    ] = None,
    dora: Annotated[bool, typer.Option("--dora", help="As a magnitude and a direction.")] = False,
    sites: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only sites that a shell pattern fits; can be repeated."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="The format to write; `lorascope formats` lists them.", show_default="peft")
    ] = None,
    dtype: Annotated[str, typer.Option(help="dtype of the factors.")] = "float32",
    base_name: Annotated[
        str | None,
        typer.Option(help="Name of the base model to write.", show_default="as BASE is known, else its folder"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the range finder for large weights.")] = 0,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Take the difference of two checkpoints as an adapter.

    One tensor is in memory at a time. The relative error is measured against the difference itself. Tensors that
    changed and are no weights of layers (norms, biases) are listed and counted: the adapter does not have them. With
    --dora the limits hold for the direction.

        lorascope extract base/ tuned/ -o adapter/ --rank 32

        lorascope extract base/ tuned/ -o adapter/ --error 0.1 --sites '*.q_proj' --sites '*.v_proj'
    """
    from pathlib import Path

    from lorascope.cli.options import cut_of
    from lorascope.cli.output import console, print_json, progress
    from lorascope.compress import extract as extracted
    from lorascope.conversion.apart import check_apart_from
    from lorascope.formats import write, written_format
    from lorascope.formats.checkpoint import Checkpoint
    from lorascope.formats.output_name import check_output, chosen_format
    from lorascope.report.extractions import extracted_as_dict, extracted_as_text

    path = Path(output)
    to = chosen_format(path, to)
    check_output(path, written_format(to), is_overwritten=overwrite)
    opened = Checkpoint.open(base)
    if overwrite:  # files of a checkpoint may be links to elsewhere
        files = [*opened.files, *Checkpoint.open(tuned).files]
        check_apart_from([Path(base), Path(tuned), *(file for file in files if file.exists())], path)
    with progress("extracting", len(opened.tensors)) as advance:
        result = extracted(
            base,
            tuned,
            cut_of(rank=rank, energy=energy, error=error),
            sites=tuple(sites or ()),
            is_dora=dora,
            dtype=dtype,
            base_name=base_name,
            seed=seed,
            on_tensor=lambda count, total: advance(1),
        )
    write(result.adapter, path, format=to)
    print_json(extracted_as_dict(result, output)) if as_json else extracted_as_text(result, output, console())
