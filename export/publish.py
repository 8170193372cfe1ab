"""Publish a bundle on the Hugging Face Hub, or copy it to a folder with a README.

Files are compared with the card and graphs with torch first. The bundle itself is never changed.
"""

import shutil
from pathlib import Path

from regionqa.bundles.hub_errors import (
    LOG_IN,
    hub_problem,
    is_broken_connection,
    page,
    quiet_client,
    root_cause,
)
from regionqa.bundles.store import CARD, Bundle
from regionqa.errors import BundleError, OutputError, PublishError
from regionqa.export.bundle import WEIGHTS, read_detector, read_encoders
from regionqa.export.onnx.verify import (
    ParityReport,
    compare_detector,
    compare_region,
    compare_vision,
)

README = "README.md"
TAGS = ("regionqa", "region", "visual-question-answering", "onnx")
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail",
    "llama2", "llama3", "gemma",
)  # fmt: skip
"""Licence names of the Hub; any other licence becomes `other` with its text on the page."""


def check_bundle(bundle: Bundle) -> list[ParityReport]:
    """Compare files with the card and graphs with torch.

    Returns:
        The reports of the graphs; none for a bundle without torch weights.

    Raises:
        BundleError: A file differs from the card.
        ExportError: A graph differs from torch.
    """
    if broken := bundle.broken_files():
        raise BundleError(
            f"{bundle.root}: differs from its card in {', '.join(broken)}; get the model again"
        )
    if not (bundle.root / WEIGHTS).exists():
        return []
    vision, region = read_encoders(bundle)
    reports = [compare_vision(vision, bundle.file(bundle.card.vision.graph))]
    if region is not None and bundle.card.region is not None:
        reports.append(compare_region(region, bundle.file(bundle.card.region.graph)))
    detector = read_detector(bundle)
    if detector is not None and bundle.card.detector is not None:
        reports.append(compare_detector(detector, bundle.file(bundle.card.detector.graph)))
    for report in reports:
        report.check()
    return reports


def write_copy(bundle: Bundle, folder: Path) -> Path:
    """Copy the card, its files and a README to a new folder; OutputError if it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: is there already and not empty; name a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for path in published_paths(bundle):
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(path), partial / path)
        if not (partial / README).exists():
            (partial / README).write_text(model_page(bundle, str(folder)), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def publish(bundle: Bundle, repo: str, *, private: bool = False) -> str:
    """Upload the card, its files and a README to a repository of the Hub, created if necessary.

    Args:
        bundle: The bundle.
        repo: OWNER/NAME.
        private: Whether the repository must be private.

    Returns:
        The address of the repository's page.

    Raises:
        PublishError: The upload failed; no file of the repository has changed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise PublishError(
            f"{repo}: publishing needs a token; log in with: {LOG_IN}, or set HF_TOKEN"
        )
    files: dict[str, Path | bytes] = {path: bundle.file(path) for path in published_paths(bundle)}
    files.setdefault(README, model_page(bundle, repo).encode())
    additions = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    api = HfApi(library_name="regionqa")
    try:
        with quiet_client():
            # None: the default of the organization
            api.create_repo(repo, private=private or None, exist_ok=True)
            public = private and not api.model_info(repo).private
            if not public:
                title = f"{bundle.card.name}, revision {bundle.card.revision}"
                api.create_commit(repo, additions, commit_message=title)
    except Exception as error:
        message = describe_publish_error(error, repo)
        if message is None:
            raise
        raise PublishError(message) from error
    if public:
        raise PublishError(
            f"{repo}: is there already and public, so --private cannot hold; make it private at "
            f"{page(repo)}/settings, or name a new one"
        )
    return page(repo)


def published_paths(bundle: Bundle) -> list[str]:
    """List the published files: the card and those it lists, no others of the folder."""
    return [CARD, *(spec.path for spec in bundle.card.files)]


def describe_publish_error(error: Exception, repo: str) -> str | None:
    """Return the message for an error of the client; None for programming errors."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = root_cause(error)
    why = " ".join(f"{type(cause).__name__}: {cause}".split())
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
        return (
            f"{repo}: your token may not write there ({cause.response.status_code}); log in with "
            f"one that may: {LOG_IN}, or publish under a name of your own"
        )
    if message := hub_problem(cause, repo):
        return message
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE forbids to publish; run again without it"
    if is_broken_connection(cause):
        return f"{repo}: the Hub cannot be reached ({why}); nothing was published; run again"
    if isinstance(cause, (OSError, ValueError)):
        return f"{repo}: nothing was published ({why})"
    return None


def model_page(bundle: Bundle, name: str) -> str:
    """Write the README of a bundle's repository from its card; `name` is the value for --model."""
    from huggingface_hub import ModelCardData

    card = bundle.card
    licence = str(card.provenance.get("licence", "")).strip()
    known = licence.lower() in LICENCES
    data = ModelCardData(
        library_name="regionqa",
        pipeline_tag="image-text-to-text",
        license=(licence.lower() if known else "other") if licence else None,
        license_name="see-provenance" if licence and not known else None,
        tags=list(TAGS),
    )
    measured = [
        table_cell(value) for key, value in card.provenance.items() if key.startswith("measured")
    ]
    facts = {
        "revision": card.revision,
        **{key: value for key, value in card.provenance.items() if not key.startswith("measured")},
    }
    rows = [f"| {table_cell(key)} | {table_cell(value)} |" for key, value in facts.items()]
    question = card.prompt.region_question.replace("<region1>", "this")
    return "\n".join(
        [
            "---", data.to_yaml(), "---", "",
            f"# {table_cell(card.name)}", "", table_cell(card.summary), "",
            "A model for regionqa, which answers questions about regions of images.", "",
            "## Use it", "",
            "```", "pip install regionqa",
            f'regionqa ask image.jpg --box 10,20,200,300 "{question}" --model {name}',
            *([f"regionqa caption image.jpg --boxes auto --model {name}"] if card.detector else []),
            "```", "",
            "## Where it comes from", "",
            "| | |", "|---|---|", *rows, "",
            "## Measured", "",
            *(measured or ["Nothing was measured."]), "",
        ]
    )  # fmt: skip


def table_cell(value: object) -> str:
    """Return a value of the card as text for a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
