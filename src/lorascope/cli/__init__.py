"""The command line: each verb in its own file, parses, calls one function of the library, prints one way.

Exit codes: 0 fine, 1 findings, 2 could not, 130 interrupted, 141 where the reader of the output has gone (``| head``).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lorascope.errors import LorascopeError

app = typer.Typer(
    name="lorascope",
    help="LoRA adapters as data: read, convert, merge, shrink, compare and find them, each error stated; forge zoos of "
    "them, learn from their weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from lorascope.version import __version__

        typer.echo(f"lorascope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a verb; the help is that of the app."""


def _register() -> None:
    from lorascope.cli import (
        bake,
        bench,
        compare,
        compress,
        convert,
        decompress,
        evaluate,
        explain_merge,
        extract,
        find,
        fit,
        forge,
        formats,
        index,
        inspect,
        lineage,
        merge,
        models,
        predict,
        resize,
        serve_pack,
        verify,
        zoo,
    )

    app.command("inspect")(inspect.inspect)
    app.command("verify")(verify.verify)
    app.command("formats")(formats.formats)
    app.command("convert")(convert.convert)
    app.command("bake")(bake.bake)
    app.command("extract")(extract.extract)
    app.command("merge", cls=merge.MergeCommand)(merge.merge)
    app.command("resize")(resize.resize)
    app.command("compress")(compress.compress)
    app.command("decompress")(decompress.decompress)
    app.command("serve-pack")(serve_pack.serve_pack)
    app.command("compare")(compare.compare)
    app.command("index")(index.index)
    app.command("find")(find.find)
    app.command("lineage")(lineage.lineage)
    app.command("explain-merge")(explain_merge.explain_merge)
    app.command("forge")(forge.forge)
    app.command("models")(models.models)
    app.command("fit")(fit.fit)
    app.command("evaluate")(evaluate.evaluate)
    app.command("predict")(predict.predict)
    app.command("bench")(bench.bench)
    app.add_typer(zoo.app, name="zoo")


def main() -> None:
    """The entry point of the ``lorascope`` command."""
    from lorascope.cli.interruption import CLOSED_PIPE, is_of_a_closed_pipe, write_nowhere

    try:
        try:
            _run()
        finally:
            sys.stdout.flush()  # what is left in the buffer would meet the closed pipe when nobody can catch it
    except (SystemExit, BrokenPipeError) as stop:
        if not is_of_a_closed_pipe(stop):
            raise
        write_nowhere()
        sys.exit(CLOSED_PIPE)


def _run() -> None:
    """A verb, its errors printed and turned into exit codes."""
    from lorascope.cli.interruption import stop_in_order
    from lorascope.cli.output import print_error

    if sys.stdout is None or sys.stderr is None:  # closed by the caller: nobody is there to read
        nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    try:
        stop_in_order()
        app()
    except KeyboardInterrupt:  # before a verb has begun, or while it ends
        sys.exit(130)
    except LorascopeError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:  # a name too long, a disk full: the system's own words say it
        what = error.strerror or type(error).__name__
        print_error(LorascopeError(what, file=error.filename), as_json="--json" in sys.argv)
        sys.exit(2)


_register()
