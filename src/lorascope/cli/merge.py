"""``lorascope merge``: several adapters of one base as one file, with the error of what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path


def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="ADAPTER…", help="Adapter files, folders or hub ids.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder for peft and mlx, else a file.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option("-m", "--method", help="How; --methods lists them.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,…", help="One for each adapter, negative ones too.", show_default="the method's own"),
    ] = None,
    weights_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=W,W,…",
            help="Other weights for the sites that a shell pattern fits; the first that fits counts.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method.", show_default=False),
    ] = None,
    learn: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Learn the weights: those with which this function of the merged adapter is least. Executes the file.",
            show_default=False,
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="With --learn: how often the function is called.")] = 40,
    rank: Annotated[int | None, typer.Option(help="Largest rank of a site.", show_default="what is exact")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of Σ σ² of each site.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Leave at most this relative error at each site.", show_default=False)
    ] = None,
    to: Annotated[str, typer.Option(help="The format to write; `lorascope formats` lists them.")] = "peft",
    dtype: Annotated[str, typer.Option(help="dtype of the factors.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random in a method.")] = 0,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge adapters that name different base models.")
    ] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out what cannot be merged or written.")
    ] = False,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and what they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Merge adapters of one base into one adapter, without the base.

    Ranks, scales and formats may differ; a site that an adapter does not have counts as zero. Where no rank, energy or
    error is given, a method whose result has low rank is written exactly, to rounding; the others with the sum of the
    ranks. The relative error is measured on what is written, against the method's exact result.

        lorascope merge style.safetensors subject/ -o both --weights 0.7,1

        lorascope merge a b c -o merged --method ties --option density=0.3 --rank 16

        lorascope merge tuned unwanted -o without --method subtract

        lorascope merge a b c -o fitted --learn examples.py:loss
    """
    from dataclasses import replace
    from pathlib import Path

    from lorascope.cli.options import with_options
    from lorascope.cli.output import console, print_json, progress
    from lorascope.cli.user_function import function_in
    from lorascope.conversion.apart import check_apart
    from lorascope.errors import LorascopeError
    from lorascope.formats import read, write, written_format
    from lorascope.formats.numbered_sites import check_named
    from lorascope.merge import METHODS, learn_weights
    from lorascope.merge import merge as merged_of
    from lorascope.report.merges import merged_as_dict, merged_as_text, methods_as_dicts, methods_as_text
    from lorascope.symmetry.truncation import Cut

    if methods:
        print_json(methods_as_dicts()) if as_json else methods_as_text(console())
        return
    if not sources or output is None:
        raise LorascopeError(
            "nothing to do", expected="adapters, and -o OUTPUT", hint="`lorascope merge --help` has examples"
        )
    member = with_options(METHODS[method], settings or [])
    by_pattern = [_pattern_and_weights(one) for one in weights_for or []]
    cut = Cut(rank=rank, energy=energy, error=error)
    if learn is not None and weights is not None:
        raise LorascopeError("weights are either given or learned", key="--learn", found=f"--weights {weights} too")
    chosen = None if weights is None else _numbers(weights, "--weights")
    loss = None if learn is None else function_in(learn, "--learn")
    adapters = [read(source) for source in sources]
    for source, adapter in zip(sources, adapters, strict=True):
        check_apart(source, adapter, Path(output))
    _check_folder(Path(output), to)
    kind = written_format(to)
    unnamed = [
        f"names of layers: {text}"
        for source, adapter in zip(sources, adapters, strict=True)
        if (text := check_named(adapter, kind, source, is_loss_allowed=allow_loss))
    ]
    learned = None
    if loss is not None:
        with progress("learning weights", evaluations) as advance:
            learned = learn_weights(
                adapters,
                loss,
                method=member,
                evaluations=evaluations,
                weights_for=by_pattern,
                seed=seed,
                names=sources,
                is_any_base=any_base,
                is_loss_allowed=allow_loss,
                advance=advance,
            )
        chosen = learned.weights.tolist()
    with progress("merging sites", len({site for adapter in adapters for site in adapter})) as advance:
        result = merged_of(
            adapters,
            member,
            weights=chosen,
            weights_for=by_pattern,
            cut=cut,
            seed=seed,
            dtype=dtype,
            names=sources,
            is_any_base=any_base,
            is_loss_allowed=allow_loss,
            advance=advance,
        )
    result = replace(result, left_out=(*result.left_out, *unnamed[:1]))
    write(result.adapter, output, format=to, dtype=dtype)
    if as_json:
        print_json(merged_as_dict(result, output, method, learned))
    else:
        merged_as_text(result, output, method, console(), learned)


def _check_folder(output: Path, to: str) -> None:
    """Refuse a folder that holds anything but an adapter of that format: its files would be mixed with the new ones."""
    from lorascope.errors import LorascopeError, OutputError
    from lorascope.formats import read

    if not output.is_dir() or not any(output.iterdir()):
        return
    try:
        found = read(output).provenance.format
    except LorascopeError:
        found = "something else"
    if found != to:
        raise OutputError(
            "the folder is not empty", file=output, expected=f"a new folder, or an adapter of {to}", found=found,
            hint="give a new name",
        )  # fmt: skip


def _numbers(text: str, key: str) -> list[float]:
    from lorascope.errors import LorascopeError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise LorascopeError("not numbers", key=key, expected="such as 1,0.5,-1", found=text) from problem


def _pattern_and_weights(text: str) -> tuple[str, list[float]]:
    from lorascope.errors import LorascopeError

    pattern, separator, numbers = text.rpartition("=")
    if not separator or not pattern:
        raise LorascopeError("not a pattern with weights", key="--weights-for", expected="*.k=1,0", found=text)
    return pattern, _numbers(numbers, f"--weights-for {pattern}")
