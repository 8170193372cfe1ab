"""`download`: fetch a model from the Hub, or convert a published model."""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import with_options
from regionqa.cli.published import ConversionOptions, download_published
from regionqa.errors import DownloadError, UsageError
from regionqa.flags import Reads

if TYPE_CHECKING:
    from regionqa.bundles.hub import Listing


@with_options
def download(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Published model (see regionqa models list), or OWNER/NAME on the Hub.",
        ),
        Reads.model,
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit. Default: main.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List files and sizes, and the disk and memory needed, without downloading.",
        ),
    ] = False,
    *,
    conversion: ConversionOptions,
) -> None:
    """Download a model from the Hub, or its changed files, and print its folder.

    regionqa download gpt4roi-7b

    regionqa download OWNER/NAME
    """
    from regionqa.bundles.hub import fetch, list_files
    from regionqa.bundles.store import (
        CARD,
        no_such_model,
        open_bundle,
        published_cards,
        published_folder,
        shipped_bundles,
    )
    from regionqa.files import locked

    published = published_cards()
    if repo in published:
        if revision:
            raise UsageError(f"{repo}: its card sets the revisions; leave --revision out")
        # --out is locked already, as every output is
        own = nullcontext() if dry_run or conversion.out else locked(published_folder(repo))
        with own:
            return download_published(repo, published[repo], conversion, dry_run)
    if conversion != ConversionOptions():
        raise UsageError(
            f"{repo}: is downloaded as it is; --delta, --base, --vision, --region, --out, --dtype, "
            f"--keep-delta and --any-base belong to {', '.join(published)}"
        )
    if repo in (shipped := shipped_bundles()):
        print(f"{repo}: ships with regionqa; there is nothing to download", file=sys.stderr)
        print(shipped[repo])
        return None
    if "/" not in repo:
        raise DownloadError(no_such_model(repo))
    if dry_run:
        return show_listing(list_files(repo, revision=revision))
    folder = fetch(repo, revision=revision, announce=show_licence)
    if (folder / CARD).exists():
        open_bundle(folder)
    print(folder)
    return None


def show_licence(listing: "Listing") -> None:
    """Print the licence, before anything is fetched."""
    if listing.licence:
        print(f"licence of {listing.repo}: {listing.licence}", file=sys.stderr)


def show_listing(listing: "Listing") -> None:
    """Print every file with its size, their sum, and how much is not cached."""
    from regionqa.bundles.hub import readable

    show_licence(listing)
    for file in listing.files:
        print(f"{readable(file.size):>12}  {file.path}")
    total = sum(file.size for file in listing.files)
    missing = sum(file.size for file in listing.missing)
    print(f"{readable(total):>12}  in total; {readable(missing)} to fetch")
