"""`download` and `export`: models from the Hub, and models to it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.options import EXPORT, require, with_options
from regionqa.errors import UsageError


@with_options
def export(
    model: Annotated[
        str, typer.Argument(help="A shipped model, a bundle's folder, or OWNER/NAME on the Hub.")
    ],
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Publish it as this repository of the Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: a new repository is private.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write it, with a README, to this folder.")
    ] = None,
) -> None:
    """Check a model's files and graphs, then write it to a folder or publish it on the Hub.

    regionqa export my-model --push OWNER/NAME
    """
    from regionqa.bundles.store import find_bundle

    if private and not push:
        raise UsageError("--private says how to publish; add --push OWNER/NAME")
    bundle = find_bundle(model)
    require("export", "export", EXPORT)
    from regionqa.export.publish import check_bundle, publish, write_copy

    reports = check_bundle(bundle)
    for report in reports:
        cases = ", ".join(report.cases)
        said = f"{report.graph}: differs from torch by {report.difference:.1e} ({cases})"
        print(said, file=sys.stderr)
    if not reports:
        print("graphs were not compared: the model has no torch weights", file=sys.stderr)
    if out:
        print(write_copy(bundle, out))
    if push:
        print(publish(bundle, push, private=private))
