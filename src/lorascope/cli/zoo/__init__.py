"""``lorascope zoo``: zoos of adapters, one verb a file."""

from __future__ import annotations

import typer

from lorascope.cli.zoo import importing, info, layouts, ls, merge, packing, remote, repair, split, verify

app = typer.Typer(no_args_is_help=True, help="Make and look at zoos: adapters with labels and splits.")
app.command("import")(importing.import_)
app.command("layouts")(layouts.layouts)
app.command("info")(info.info)
app.command("ls")(ls.ls)
app.command("merge")(merge.merge)
app.command("pack")(packing.pack)
app.command("unpack")(packing.unpack)
app.command("push")(remote.push)
app.command("pull")(remote.pull)
app.command("split")(split.split)
app.command("verify")(verify.verify)
app.command("repair")(repair.repair)
