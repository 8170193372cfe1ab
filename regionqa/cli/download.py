"""`download`: fetch a model from the Hub, or convert a published model."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.export import find_network, named_network, prepare_network, prepare_vision
from regionqa.cli.options import with_options
from regionqa.cli.published import ConversionOptions, download_published
from regionqa.errors import DownloadError, UsageError
from regionqa.flags import Reads

if TYPE_CHECKING:
    from regionqa.bundles.card import ModelCard
    from regionqa.bundles.hub import Listing
    from regionqa.vlm.card import VlmCard
    from regionqa.vlm.catalogue import FoundCheckpoint
    from regionqa.vlm.store import FoundVlm


@with_options
def download(
    repo: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name (regionqa models list), or OWNER/NAME."),
        Reads.model,
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit. Default: the card's, else main.")
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

    Of a vision-language model or a detector, the files that are needed to run it are fetched, of
    other repositories all files. Its vision encoder, or the detector, is then exported to ONNX, if
    regionqa[export] is installed.

    regionqa download qwen3-vl-2b

    regionqa download OWNER/NAME
    """
    from regionqa.bundles.store import published_cards, published_folder
    from regionqa.files import locked

    published = published_cards()
    if repo not in published:
        refuse_conversion(repo, conversion, published)
        for line in download_from_hub(repo, revision, dry_run=dry_run):
            print(line)
        return
    if revision:
        raise UsageError(f"{repo}: its card sets the revisions; leave --revision out")
    # --out is locked already, as every output is
    own = nullcontext() if dry_run or conversion.out else locked(published_folder(repo))
    with own:
        download_published(repo, published[repo], conversion, dry_run)


def refuse_conversion(
    name: str, conversion: ConversionOptions, published: dict[str, "ModelCard"]
) -> None:
    """Raise UsageError for options that only published models have."""
    if conversion != ConversionOptions():
        raise UsageError(
            f"{name}: is downloaded as it is; --delta, --base, --vision, --region, --out, --dtype, "
            f"--keep-delta and --any-base belong to {', '.join(published)}"
        )


def download_from_hub(name: str, revision: str | None, *, dry_run: bool) -> list[str]:
    """Fetch a model that is used as it is published.

    Returns:
        The folder, or with `dry_run` files and sizes, as lines.
    """
    from regionqa.bundles.hub import fetch, list_files
    from regionqa.bundles.store import CARD, no_such_model, open_bundle, shipped_bundles
    from regionqa.vlm.catalogue import FoundCheckpoint

    if name in (shipped := shipped_bundles()):
        print(f"{name}: ships with regionqa; there is nothing to download", file=sys.stderr)
        return [str(shipped[name])]
    found = find_checkpoint(name, revision)
    if isinstance(found, FoundCheckpoint):
        return download_network(found, dry_run=dry_run)
    if found:
        return plan_of_checkpoint(found) if dry_run else [str(download_checkpoint(found))]
    if "/" not in name:
        raise DownloadError(no_such_model(name))
    if dry_run:
        listing = list_files(name, revision=revision)
        show_licence(listing)
        return listing_lines(listing)
    folder = fetch(name, revision=revision, announce=show_licence)
    if (folder / CARD).exists():
        open_bundle(folder)
    return [str(folder)]


def download_network(found: "FoundCheckpoint", *, dry_run: bool) -> list[str]:
    """Fetch a detector or segmenter and export it.

    Returns:
        The folder, or with `dry_run` files and sizes, as lines.
    """
    from regionqa.segmentation.base import FoundSegmenter
    from regionqa.vlm.checkpoints import fetch_checkpoint, list_checkpoint

    source = found.source
    assert source is not None
    if dry_run:
        listing = list_checkpoint(source)
        show_licence(listing, source.licence)
        then = f"regionqa detect IMAGE --model {found.name}"
        if isinstance(found, FoundSegmenter):
            then = f"regionqa ask IMAGE --point X,Y --segmenter {found.name} QUESTION"
        return [*listing_lines(listing), f"next: {then}"]
    folder = fetch_checkpoint(source, lambda listing: show_licence(listing, source.licence))
    prepare_network(found, folder)
    return [str(folder)]


def show_licence(listing: "Listing", stated: str = "") -> None:
    """Print the licence, before anything is fetched.

    Args:
        listing: The repository.
        stated: The licence by the model's card, for a repository that states none.
    """
    if licence := listing.licence or stated:
        print(f"licence of {listing.repo}: {licence}", file=sys.stderr)


def listing_lines(listing: "Listing") -> list[str]:
    """List every file with its size, their sum, and how much is not cached."""
    from regionqa.bundles.hub import readable

    total = sum(file.size for file in listing.files)
    missing = sum(file.size for file in listing.missing)
    return [
        *(f"{readable(file.size):>12}  {file.path}" for file in listing.files),
        f"{readable(total):>12}  in total; {readable(missing)} to fetch",
    ]


# -- vision-language models ------------------------------------------------------------------------


def find_checkpoint(name: str, revision: str | None) -> "FoundVlm | FoundCheckpoint | None":
    """Find a vision-language model, detector or segmenter, by name or repository; or None.

    Raises:
        DownloadError: The Hub cannot be asked what the repository holds.
    """
    from regionqa.bundles.hub import looks_like_repo
    from regionqa.bundles.store import shipped_vlm_names
    from regionqa.vlm.cards import UnknownFamilyError, shipped_vlm_card
    from regionqa.vlm.store import vlm_on_hub

    if name in shipped_vlm_names() and (source := shipped_vlm_card(name).source):
        return vlm_on_hub(source.repo, revision)
    if network := named_network(name, revision):
        return network
    try:
        return vlm_on_hub(name, revision) if looks_like_repo(name) else None
    except UnknownFamilyError:  # or a language model, for instance, which `init` puts into a bundle
        return find_network(name, revision)


def download_checkpoint(found: "FoundVlm") -> Path:
    """Fetch the files of a checkpoint that transformers reads; their folder."""
    from regionqa.vlm.checkpoints import fetch_checkpoint

    source = found.card.source
    assert source is not None
    folder = fetch_checkpoint(source, lambda listing: show_licence(listing, source.licence))
    prepare_checkpoint(found.card, folder)
    return folder


def prepare_checkpoint(card: "VlmCard", folder: Path) -> None:
    """Check the weights of a downloaded checkpoint, and export its vision encoder.

    Raises:
        DownloadError: The repository's own files cannot be used.
    """
    from regionqa.errors import BundleError
    from regionqa.runtime.precision import weights_of

    try:
        weights_of(folder)
    except BundleError as error:
        raise DownloadError(f"{card.name}: {error}; tell the repository's owner") from error
    prepare_vision(card, folder)


def plan_of_checkpoint(found: "FoundVlm") -> list[str]:
    """List files, sizes, memory and the next commands of a checkpoint.

    Where the Hub cannot be reached, sizes are the card's.
    """
    from regionqa.bundles.hub import readable
    from regionqa.bundles.hub_errors import is_unreachable, page
    from regionqa.runtime.memory import table
    from regionqa.vlm.checkpoints import list_checkpoint
    from regionqa.vlm.memory import needs_of_vlm
    from regionqa.vlm.store import download_command

    card, source = found.card, found.card.source
    assert source is not None
    try:
        listing = list_checkpoint(source)
        show_licence(listing, source.licence)
        lines = listing_lines(listing)
    except DownloadError as error:
        if not source.size or error.__cause__ is None or not is_unreachable(error.__cause__):
            raise
        print("the Hub cannot be reached: what follows is by the model's card", file=sys.stderr)
        print(f"licence of {source.repo}: {source.licence}", file=sys.stderr)
        lines = [f"{readable(source.size):>12}  in total"]
    if source.gated:
        lines.append(f"its terms must be accepted first, at {page(source.repo)}")
    needs = needs_of_vlm(card, found.folder)
    memory = table(needs) if needs else ["not known before the download"]
    return [
        *lines,
        "memory to ask it:",
        *(f"  {line}" for line in memory),
        f"next: {download_command(card)}",
        f"      regionqa ask IMAGE --model {card.name} --box X0,Y0,X1,Y1 QUESTION",
    ]
