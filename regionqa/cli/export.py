"""`export`: check a model, and write or publish it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.init import free_folder
from regionqa.cli.options import EXPORT, require, with_options
from regionqa.errors import UsageError
from regionqa.flags import Reads, Writes


@with_options
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a shipped model, folder of a bundle, or OWNER/NAME on the Hub."
        ),
        Reads.model,
    ],
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Publish to this repository on the Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a new repository private.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write the model to, with a README."),
        Writes.folder,
    ] = None,
) -> None:
    """Check a model's files and graphs, then write it to a folder or publish it on the Hub.

    regionqa export my-model --push OWNER/NAME
    """
    from regionqa.bundles.store import find_bundle

    if private and not push:
        raise UsageError("--private: needs --push OWNER/NAME")
    if out:
        free_folder(out)
    bundle = find_bundle(model)
    require("export", "export", EXPORT)
    from regionqa.export.publish import check_bundle, publish, write_copy

    reports = check_bundle(bundle)
    for report in reports:
        print(report.summary, file=sys.stderr)
    if not reports:
        print("graphs were not compared: the model has no torch weights", file=sys.stderr)
    if out:
        print(write_copy(bundle, out))
    if push:
        print(publish(bundle, push, private=private))
