"""A bundle -> a repository of the Hugging Face Hub, or a folder ready to become one.

Nothing leaves this machine before the files were compared with the card and the graphs with torch.
The bundle's own folder is never written to. It does not know how the bundle was made.
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
from regionqa.export.bundle import WEIGHTS, read_encoders
from regionqa.export.onnx.verify import ParityReport, compare_region, compare_vision

README = "README.md"
TAGS = ("regionqa", "region", "visual-question-answering", "onnx")
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail",
    "llama2", "llama3", "gemma",
)  # fmt: skip
"""Names the Hub knows; any other licence is `other` there, and stands in the text."""


def check_bundle(bundle: Bundle) -> list[ParityReport]:
    """Compare files with the card and graphs with torch; the reports, none without torch weights.

    Raises BundleError where a file is not what the card says, ExportError where a graph differs.
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
    for report in reports:
        report.check()
    return reports


def write_copy(bundle: Bundle, folder: Path) -> Path:
    """The card, its files and a README in a new folder; OutputError where that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: is there already and not empty; name a new folder")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        for path in published(bundle):
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
    """Put the card, its files and a README into a repository of the Hub; the page's address.

    The repository is made where there is none. private: it must be seen by its owners only.
    Raises PublishError; then no file of the repository has changed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise PublishError(
            f"{repo}: publishing needs a token; log in with: {LOG_IN}, or set HF_TOKEN"
        )
    files: dict[str, Path | bytes] = {path: bundle.file(path) for path in published(bundle)}
    files.setdefault(README, model_page(bundle, repo).encode())
    additions = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    api = HfApi(library_name="regionqa")
    try:
        with quiet_client():
            # None leaves to an organization what its new repositories are
            api.create_repo(repo, private=private or None, exist_ok=True)
            public = private and not api.model_info(repo).private
            if not public:
                message = f"{bundle.card.name}, revision {bundle.card.revision}"
                api.create_commit(repo, additions, commit_message=message)
    except Exception as error:
        told = describe_publish_error(error, repo)
        if told is None:
            raise
        raise PublishError(told) from error
    if public:
        raise PublishError(
            f"{repo}: is there already and public, so --private cannot hold; make it private at "
            f"{page(repo)}/settings, or name a new one"
        )
    return page(repo)


def published(bundle: Bundle) -> list[str]:
    """What is published: the card and what it lists, and nothing else that lies in the folder."""
    return [CARD, *(spec.path for spec in bundle.card.files)]


def describe_publish_error(error: Exception, repo: str) -> str | None:
    """The line for what the client raised; None where it is a mistake of ours."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = root_cause(error)
    why = " ".join(f"{type(cause).__name__}: {cause}".split())
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
        return (
            f"{repo}: your token may not write there ({cause.response.status_code}); log in with "
            f"one that may: {LOG_IN}, or publish under a name of your own"
        )
    if told := hub_problem(cause, repo):
        return told
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE forbids to publish; run again without it"
    if is_broken_connection(cause):
        return f"{repo}: the Hub cannot be reached ({why}); nothing was published; run again"
    if isinstance(cause, (OSError, ValueError)):
        return f"{repo}: nothing was published ({why})"
    return None


def model_page(bundle: Bundle, name: str) -> str:
    """The README of a published model, from its card; `name` is what a user calls it by."""
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
            f'regionqa ask image.jpg --box 10,20,200,300 "{question}" --model {name}', "```", "",
            "## Where it comes from", "",
            "| | |", "|---|---|", *rows, "",
            "## Measured", "",
            *(measured or ["Nothing was measured."]), "",
        ]
    )  # fmt: skip


def table_cell(value: object) -> str:
    """A value of the card as text that can stand in a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
