"""``lorascope compress``: many adapters of one base in one small file, with the error of each."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def compress(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="ZOO|ADAPTER…", help="A zoo, or adapter files, folders of them or hub ids."),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PACK", help="The file to write.", show_default="none with --sweep"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="joint, eigen, diagonal: shared bases; alone: each its own.", show_default="joint, alone for one"
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Width of the bases; of alone, largest rank.", show_default="16; all of alone")
    ] = None,
    clusters: Annotated[int, typer.Option(help="How many sets of bases.")] = 1,
    quantise: Annotated[
        str | None, typer.Option(help="Round what is stored: int8 or int4.", show_default="not at all")
    ] = None,
    dtype: Annotated[str, typer.Option(help="dtype of what is stored, where it is not rounded.")] = "float32",
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,…", help="Only print size and error for these ranks; writes nothing.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the start of the clusters.")] = 0,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Pack adapters that name different base models.")
    ] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out saved tensors and changes of biases.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Pack many adapters of one base into one small file.

    They share bases and have a small core each, or (--method alone) stand each for itself. The error of each adapter is
    measured on what `lorascope decompress` gives back; a pack that loses much of the adapters, or is larger than they
    are, is held against each alone with the same rounding. In a zoo or folder, adapters that cannot be read are left
    out and counted (exit code 1); among adapters that are named one by one, one is an error.

        lorascope compress zoo/ -o zoo.pack.safetensors --method alone --quantise int4

        lorascope compress zoo/ --sweep 4,8,16,32 --quantise int8

        lorascope compress zoo/ -o zoo.pack.safetensors --rank 24 --quantise int8
    """
    from functools import partial
    from pathlib import Path

    from lorascope.cli.output import console, print_json, progress
    from lorascope.cli.sources import adapters_at
    from lorascope.compress import compress as compressed
    from lorascope.compress import write_pack
    from lorascope.conversion.apart import check_apart, check_apart_from
    from lorascope.errors import LorascopeError
    from lorascope.formats.output_name import check_file
    from lorascope.report.packs import compressed_as_dict, compressed_as_text

    if output is None and sweep is None:
        raise LorascopeError("nothing says what to do", expected="-o PACK to write one, or --sweep K,K,… to try ranks")
    if output is not None and sweep is not None:
        raise LorascopeError(
            "-o writes one pack, --sweep tries several ranks and writes none", expected="one of the two", found="both"
        )
    known = {None: None, "int8": 8, "int4": 4}
    if quantise not in known:
        raise LorascopeError("no such rounding", key="--quantise", expected="int8 or int4", found=quantise)
    ranks = [rank] if sweep is None else _numbers(sweep)
    if output is not None:
        check_file(Path(output), is_overwritten=overwrite)
        if Path(output).exists():  # of a zoo its notes are a source too, and so is what cannot be read
            check_apart_from((Path(source) for source in sources if Path(source).exists()), Path(output))
    given = adapters_at(sources)
    if not given.adapters:
        raise given.failures[0] if given.failures else LorascopeError("no adapters here", file=sources[0])
    if output is not None:
        for adapter in given.adapters:
            check_apart(adapter, adapter, Path(output))
    way = method or ("alone" if len(given.adapters) == 1 else "joint")
    packed = partial(
        compressed,
        given.adapters,
        given.names,
        clusters=clusters,
        bits=known[quantise],
        dtype=dtype,
        seed=seed,
        is_any_base=any_base,
        is_loss_allowed=allow_loss,
    )
    sites = len({site for adapter in given.adapters for site in adapter})
    with progress("packing sites", sites * len(ranks)) as advance:
        # the method is checked where it is used
        results = [packed(method=way, rank=own, advance=advance) for own in ranks]  # type: ignore[reportArgumentType]
    alone = packed(method="alone") if way != "alone" and all(one.is_poor for one in results) else None
    size = None
    if output is not None:
        write_pack(results[0].pack, Path(output))
        size = Path(output).stat().st_size
    if as_json:
        print_json(compressed_as_dict(results, ranks, output, size, given.failures, alone))
    else:
        compressed_as_text(results, ranks, output, size, given.failures, console(), alone)
    if given.failures:
        raise typer.Exit(1)


def _numbers(text: str) -> list[int | None]:
    from lorascope.errors import LorascopeError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise LorascopeError("not numbers", key="--sweep", expected="such as 4,8,16", found=text) from problem
