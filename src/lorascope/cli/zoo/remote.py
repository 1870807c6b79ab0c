"""``lorascope zoo push`` and ``pull``: zoos on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from lorascope.zoo.remote import TransferResult


def push(
    zoo: Annotated[Path, typer.Argument(help="A zoo; pack it first where it has thousands of adapters.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository; made where it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository that only you can see.")] = False,
    type: Annotated[Literal["dataset", "model"], typer.Option(help="Of the repository.")] = "dataset",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send a zoo to the hub, whole and verified.

    The same command goes on after an interruption.
    """
    from lorascope.cli.output import progress
    from lorascope.report.numbers import counted
    from lorascope.zoo.remote import push as run

    with progress("sending files", sum(1 for path in zoo.rglob("*") if path.is_file())) as advance:
        result = run(zoo, repo, private=private, repo_type=type, on_progress=advance)
    _print(result, f"{result.repo}: {counted(result.files, 'file')}, {result.moved} sent", as_json)


def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="A repository that holds a zoo.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    type: Annotated[Literal["dataset", "model"], typer.Option(help="Of the repository.")] = "dataset",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a zoo from the hub and verify every byte.

    The same command goes on after an interruption.
    """
    from lorascope.report.numbers import counted
    from lorascope.zoo.remote import pull as run

    result = run(repo, out, repo_type=type)
    _print(result, f"{result.zoo}: {counted(result.files, 'file')}, {result.moved} fetched, all as recorded", as_json)


def _print(result: TransferResult, text: str, as_json: bool) -> None:
    from lorascope.cli.output import console, print_json

    if as_json:
        print_json(result.as_dict())
    else:
        console().print(text, markup=False, soft_wrap=True)
