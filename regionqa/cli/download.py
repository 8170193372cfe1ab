"""`download`: fetch models from the Hub."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import with_options
from regionqa.cli.published import ConversionOptions, download_published
from regionqa.errors import UsageError
from regionqa.options import DtypeChoice

if TYPE_CHECKING:
    from regionqa.bundles.hub import Listing


Part = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Published models: folder, file or OWNER/NAME to take this part from instead.",
    ),
]


@with_options
def download(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a published model (see regionqa models list), or any repository of the "
            "Hugging Face Hub as OWNER/NAME.",
        ),
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
    delta: Part = None,
    base: Part = None,
    vision: Part = None,
    region: Part = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Published models: folder to write the model to."),
    ] = None,
    dtype: Annotated[
        DtypeChoice,
        typer.Option(
            help="Published models: dtype of the language model's weights; auto is as published."
        ),
    ] = DtypeChoice.auto,
    keep_delta: Annotated[
        bool,
        typer.Option(
            "--keep-delta", help="Published models: keep the delta weights in the Hub's cache."
        ),
    ] = False,
    any_base: Annotated[
        bool,
        typer.Option(
            "--any-base",
            help="Published models: accept a base model that seems to be the wrong one.",
        ),
    ] = False,
) -> None:
    """Download a model from the Hub, or its changed files, and print its folder.

    regionqa download gpt4roi-7b

    regionqa download OWNER/NAME
    """
    from regionqa.bundles.hub import fetch, list_files
    from regionqa.bundles.store import CARD, open_bundle, published_cards

    given = {"delta": delta, "base": base, "vision": vision, "region": region}
    options = ConversionOptions(
        {name: place for name, place in given.items() if place}, out, dtype, keep_delta, any_base
    )
    published = published_cards()
    if repo in published:
        if revision:
            raise UsageError(f"{repo}: its card sets the revisions; leave --revision out")
        return download_published(repo, published[repo], options, dry_run)
    if options != ConversionOptions():
        raise UsageError(
            f"{repo}: is downloaded as it is; --delta, --base, --vision, --region, --out, --dtype, "
            f"--keep-delta and --any-base belong to {', '.join(published)}"
        )
    if dry_run:
        return show_listing(list_files(repo, revision=revision))
    folder = fetch(repo, revision=revision, announce=show_licence)
    if (folder / CARD).exists():
        open_bundle(folder)
    print(folder)
    return None


def show_licence(listing: "Listing") -> None:
    """Print the licence before the download starts."""
    if listing.licence:
        print(f"licence of {listing.repo}: {listing.licence}", file=sys.stderr)


def show_listing(listing: "Listing") -> None:
    """Print every file with its size, the total, and how much of it is to be downloaded."""
    from regionqa.bundles.hub import readable

    show_licence(listing)
    for file in listing.files:
        print(f"{readable(file.size):>12}  {file.path}")
    total = sum(file.size for file in listing.files)
    missing = sum(file.size for file in listing.missing)
    print(f"{readable(total):>12}  in total; {readable(missing)} to fetch")
