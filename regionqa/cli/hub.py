"""`download`: models from the Hub."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

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
