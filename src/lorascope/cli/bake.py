"""``lorascope bake``: adapters folded into a checkpoint, streaming."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lorascope.cli.options import Overwrite

if TYPE_CHECKING:
    from lorascope.adapter import Adapter
    from lorascope.adapter.layout import Layout


def bake(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The base: a folder of safetensors weights, or one file.", show_default=False
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="Adapter files, folders or hub ids.", show_default=False),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="A new folder, or a new file where BASE is one.", show_default=False)
    ],
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="A factor for each adapter, in order; give it once for each.", show_default="1"),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="The scale of sites whose scale an adapter does not state.", show_default="none"),
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option(
            "--allow-loss",
            help="Leave out saved tensors without a place in the base, and take doubtful updates as read.",
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="How the base stores square weights that neither it nor the adapters tell of: out-in "
            "(torch.nn.Linear) or in-out (GPT-2's Conv1D, experts of GPT-OSS).",
            show_default="none",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Fold adapters into a checkpoint: W + Σ ΔW.

    One tensor is in memory at a time. The sum is formed in float64 and rounded once to the dtype of the base. All other
    tensors and files are copied.
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.conversion import bake as bake_files
    from lorascope.formats.checkpoint import Checkpoint
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe

    with progress("baking", len(Checkpoint.open(base).tensors)) as advance:
        report = bake_files(
            base,
            [_given(one, scale) for one in adapters],
            output,
            weights=weight or None,
            is_loss_allowed=allow_loss,
            layout=cast("Layout | None", layout),  # checked where it is used
            is_overwritten=overwrite,
            on_tensor=lambda count, total: advance(1),
        )
    if as_json:
        print_json({"schema_version": 1, **asdict(report)})
        return
    replaced = f", {len(report.replaced)} replaced" if report.replaced else ""
    console().print(
        f"{counted(report.sites, 'site')} baked into {counted(report.tensors, 'tensor')}{replaced}: {report.output}\n"
        f"rounding to the dtype of the base: {report.rounding:.3g} of ‖ΔW‖",
        soft_wrap=True,
    )
    for note in report.notes:
        console().print(safe(note), soft_wrap=True)


def _given(location: str, scale: float | None) -> Adapter:
    """The adapter, with the scale given where its file states none."""
    from lorascope.formats import read
    from lorascope.formats.given_scale import is_scale_open, with_given_scale

    adapter = read(location)
    return with_given_scale(adapter, scale) if scale is not None and is_scale_open(adapter) else adapter
