"""`download` and `export`: models from the Hub, and models to it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.extras import EXPORT, require
from regionqa.cli.options import Debug

if TYPE_CHECKING:
    from regionqa.downloads import Listing


def download(
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face Hub.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; main if not said.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, and fetch nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fetch a model from the Hub, or what is new in it; prints the folder it lies in.

    regionqa download OWNER/NAME
    """
    from regionqa.bundles import CARD, open_bundle
    from regionqa.downloads import fetch, list_files

    if dry_run:
        return show_listing(list_files(repo, revision=revision))
    folder = fetch(repo, revision=revision, announce=show_licence)
    if (folder / CARD).exists():
        open_bundle(folder)
    print(folder)
    return None


def show_licence(listing: "Listing") -> None:
    """The licence, before the first byte arrives."""
    if listing.licence:
        print(f"licence of {listing.repo}: {listing.licence}", file=sys.stderr)


def show_listing(listing: "Listing") -> None:
    """Every file with its size, the sum, and how much of it is still to come."""
    from regionqa.downloads import readable

    show_licence(listing)
    for file in listing.files:
        print(f"{readable(file.size):>12}  {file.path}")
    total = sum(file.size for file in listing.files)
    missing = sum(file.size for file in listing.missing)
    print(f"{readable(total):>12}  in all; {readable(missing)} to fetch")


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
    debug: Debug = False,
) -> None:
    """Check a model's files and graphs, then write it to a folder or publish it on the Hub.

    regionqa export my-model --push OWNER/NAME
    """
    from regionqa.bundles import find_bundle
    from regionqa.errors import UsageError

    if private and not push:
        raise UsageError("--private says how to publish; add --push OWNER/NAME")
    bundle = find_bundle(model)
    require("export", "export", EXPORT)
    from regionqa.export.publish import check, publish, write_copy

    reports = check(bundle)
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
