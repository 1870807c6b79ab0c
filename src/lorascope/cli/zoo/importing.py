"""``lorascope zoo import``: a zoo of one's own adapters, or of a published one in its authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorascope.zoo import ImportReport


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Your adapters, in any tree, or a published zoo.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="A CSV file: a column `path` relative to DIR, and a column per label. Lists as 1;2;3."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How DIR is laid out: `lorascope zoo layouts` lists them. [default: as recognised]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder, with the adapters linked into it. [default: DIR itself]")
    ] = None,
    hyperparameter: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column known before training; may be repeated.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Equal values stay on one side of the split.")
    ] = None,
    layout_splits: Annotated[
        bool, typer.Option("--layout-splits", help="Keep the authors' split too, as the column published_split.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a zoo of your own adapters, or of a published zoo.

    `lorascope fit` learns from it. Your own come with a table of labels. Without --labels, DIR has the layout of a
    published zoo, which states labels and groups itself.
    """
    from lorascope.cli.output import print_json
    from lorascope.cli.output import track as bar
    from lorascope.zoo import import_published, import_zoo

    if labels is None:
        if hyperparameter or group:
            raise typer.BadParameter("belong to --labels: a layout states them itself", param_hint="--hyperparameter")
        report = import_published(
            folder,
            layout=layout,
            out=out,
            published_split=layout_splits,
            track=lambda entries, count: bar(entries, count, "checking adapters"),
        )
    else:
        if layout is not None or layout_splits:
            raise typer.BadParameter("a table and a layout are two ways to say the same", param_hint="--labels")
        report = import_zoo(
            folder,
            labels,
            out=out,
            hyperparameters=hyperparameter or [],
            group=group,
            track=lambda paths: bar(paths, len(paths), "checking adapters"),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)


def _print(report: ImportReport) -> None:
    from lorascope.cli.output import console
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe

    def line(text: str) -> None:
        for part in text.split("\n"):
            screen.print(safe(part, width=2000), markup=False, soft_wrap=True)

    screen = console()
    of_layout = f", {report.layout} ({report.variant})" if report.layout else ""
    line(f"{report.zoo}: {counted(report.count, 'adapter')}{of_layout}")
    for path, error in list(report.unreadable.items())[:10]:
        line(f"  unreadable: {path}: {error}")
    if len(report.unreadable) > 10:
        line(f"  … {len(report.unreadable)} unreadable in all; --json lists them")
    kept = ", kept with null labels" if report.layout else ""
    lists = (
        (report.unlabelled, "adapter", f"without labels{kept}"),
        (report.missing, "label", "without adapter"),
    )
    for names, noun, what in lists:
        if names:
            line(f"  {counted(len(names), noun)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}")
    for note in report.notes:
        line(f"  {note}")
    line(f"next: lorascope zoo info {report.zoo}")
