"""``lorascope merge``: several adapters of one base as one file, with the error of what is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lorascope.cli.options import Overwrite

if TYPE_CHECKING:
    from lorascope.adapter import Adapter

_NUMBERS = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?(,.*)?", re.IGNORECASE)


class MergeCommand(TyperCommand):
    """Takes weights that are apart (``--weights .5 .3 -.2``) as if commas were between them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the verb."""
        return super().parse_args(ctx, _weights_joined(args))


def _weights_joined(arguments: list[str]) -> list[str]:
    """The arguments with the numbers after ``--weights`` as one, but for those that are names of files.

    >>> _weights_joined(["a", "b", "--weights", ".5", "-.2", "-o", "c"])
    ['a', 'b', '--weights', '.5,-.2', '-o', 'c']
    """
    from pathlib import Path

    if "--weights" not in arguments:
        return arguments
    begin = end = arguments.index("--weights") + 1
    while end < len(arguments) and _NUMBERS.fullmatch(arguments[end]) and not Path(arguments[end]).exists():
        end += 1
    if end - begin < 2:
        return arguments
    return [*arguments[:begin], ",".join(arguments[begin:end]), *arguments[end:]]


def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="ADAPTER…", help="Adapter files, folders or hub ids.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="A new folder for peft and mlx, else a file.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option("-m", "--method", help="How; --methods lists them.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,…",
            help="One for each adapter, negative ones too.",
            show_default="the method's own",
        ),
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
    to: Annotated[
        str | None,
        typer.Option(
            help="The format to write; `lorascope formats` lists them.",
            show_default="peft; of a file name that of the adapters",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="dtype of the factors.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random in a method.")] = 0,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge adapters that name different base models.")
    ] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out what cannot be merged or written.")
    ] = False,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and what they are.")] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Merge adapters of one base into one, without the base.

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

    from lorascope.cli.options import cut_of, with_options
    from lorascope.cli.output import console, print_json, progress
    from lorascope.cli.user_function import function_in
    from lorascope.conversion.apart import check_apart
    from lorascope.errors import AdapterError, LorascopeError
    from lorascope.formats import read, write, written_format
    from lorascope.formats.numbered_sites import check_named
    from lorascope.formats.output_name import check_output, chosen_format
    from lorascope.merge import METHODS, learn_weights
    from lorascope.merge import merge as merged_of
    from lorascope.report.merges import merged_as_dict, merged_as_text, methods_as_dicts, methods_as_text

    if methods:
        print_json(methods_as_dicts()) if as_json else methods_as_text(console())
        return
    if not sources or output is None:
        raise LorascopeError(
            "nothing to do", expected="adapters, and -o OUTPUT", hint="`lorascope merge --help` has examples"
        )
    member = with_options(METHODS[method], settings or [])
    by_pattern = [_pattern_and_weights(one) for one in weights_for or []]
    cut = cut_of(rank=rank, energy=energy, error=error)
    if learn is not None and weights is not None:
        raise LorascopeError("weights are either given or learned", key="--learn", found=f"--weights {weights} too")
    chosen = None if weights is None else _numbers(weights, "--weights")
    loss = None if learn is None else function_in(learn, "--learn")
    adapters = [read(source) for source in sources]
    for source, adapter in zip(sources, adapters, strict=True):
        check_apart(source, adapter, Path(output))
    to = chosen_format(Path(output), to, adapters)
    kind = written_format(to)
    check_output(Path(output), kind, is_overwritten=overwrite)
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
    try:
        write(result.adapter, output, format=to, dtype=dtype)
    except AdapterError as problem:
        problem.hint = "; or ".join(filter(None, [_other_format(adapters, to), problem.hint])) or None
        raise
    if as_json:
        print_json(merged_as_dict(result, output, method, learned))
    else:
        merged_as_text(result, output, method, console(), learned)


def _other_format(adapters: list[Adapter], to: str) -> str | None:
    """What to write instead, where all adapters are of another format that can be written."""
    from lorascope.formats import formats

    own = {adapter.provenance.format for adapter in adapters}
    fits = [one.name for one in formats() if own == {one.name} and one.name != to and one.write is not None]
    return f"the adapters are of {fits[0]}: --to {fits[0]} writes one more" if fits else None


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
