"""``lorascope convert``: an adapter in another format, with a report of every loss."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorascope.cli.options import Overwrite


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Adapter file, folder or hub id.", show_default=False)],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="What to write: a folder for peft and mlx, else a file with the suffix of the format.",
            show_default=False,
        ),
    ],
    to: Annotated[str, typer.Option(help="The format to write; `lorascope formats` lists them.", show_default=False)],
    format: Annotated[
        str | None, typer.Option(help="The format of SRC, where the file leaves it open.", show_default=False)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="The scale of sites whose scale SRC does not state.", show_default="as assumed"),
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="A JSON file that says which tensors make which site.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="dtype of the tensors: float32, float16, bfloat16 …", show_default="as stored")
    ] = None,
    fold_scale: Annotated[
        bool, typer.Option("--fold-scale", help="Multiply the scale into B, so that alpha = rank.")
    ] = False,
    base_name: Annotated[
        str | None, typer.Option(help="Name of the base model to write.", show_default="as stated")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the base model, or its config.json. Its shapes tell the kernels and fused rows that "
            "SRC leaves open; GGUF needs the architecture and numbers of heads.",
            show_default=False,
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="model_type of the base model.", show_default="that of --base")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the base model.", show_default="those of --base")
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Key and value heads of the base model.", show_default="those of --base, or --heads"),
    ] = None,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Leave out the metadata inside the file.")
    ] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write what can be written instead of refusing; the rest is reported.")
    ] = False,
    allow_growth: Annotated[
        bool, typer.Option("--allow-growth", help="Write plain factors however much larger than SRC they are.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="The loss report as one JSON object.")] = False,
) -> None:
    """Convert an adapter to another format, each loss reported.

    The sites are the same, and ΔW to rounding. To its own format an unedited file is written bit for bit. What was
    written is read again and compared with the source; only then does it take its place. Where something is already
    nothing is written without --overwrite.
    """
    from pathlib import Path

    from lorascope.cli.output import console, print_json
    from lorascope.conversion import convert as convert_file
    from lorascope.formats.config_file import read_config
    from lorascope.report.losses import losses_as_text

    report = convert_file(
        source,
        target,
        to=to,
        source_format=format,
        scale=scale,
        mapping=None if mapping is None else read_config(Path(mapping))[0],
        dtype=dtype,
        is_scale_folded=fold_scale,
        base_name=base_name,
        base_config=_base_config(
            base, model_type=architecture, num_attention_heads=heads, num_key_value_heads=kv_heads
        ),
        is_metadata_kept=not strip_metadata,
        base=base if base is not None and _has_weights(base) else None,
        is_loss_allowed=allow_loss,
        is_growth_allowed=allow_growth,
        is_overwritten=overwrite,
    )
    print_json(report.as_dict()) if as_json else losses_as_text(report, console())


def _base_config(base: str | None, **given: Any) -> dict[str, Any]:
    """What config.json at ``base`` says, and what was given in its place."""
    from pathlib import Path

    from lorascope.formats.config_file import read_config
    from lorascope.formats.gguf_names import text_config
    from lorascope.formats.interpretation import placed

    config: dict[str, Any] = {}
    if base is not None:
        with placed(base):
            path = Path(base)
            is_alone = _has_weights(base) and not (path / "config.json").exists()
            if not is_alone:
                config = text_config(read_config(path / "config.json" if path.is_dir() else path)[0])
    return config | {key: value for key, value in given.items() if value is not None}


def _has_weights(base: str) -> bool:
    """Whether weights of the base are there, and not its configuration alone."""
    from pathlib import Path

    path = Path(base)
    return path.suffix == ".safetensors" or (path.is_dir() and any(path.rglob("*.safetensors")))
