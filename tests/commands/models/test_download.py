"""Models from the Hub: fetched, found again, and every way in which that fails, as one line.

The Hub is a stand-in on loopback; the client is the real one.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import logging as client_log
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.hub_server import Hub
from regionqa.bundles.hub import cached, fetch, list_files, local_or_hub, looks_like_repo, readable
from regionqa.bundles.store import CARD, Bundle, find_bundle
from regionqa.errors import DownloadError

if TYPE_CHECKING:
    from conftest import Command

TINY = "ann/tiny-llama"
WEIGHTS = "model.safetensors"
WEIGHTS_OF_STARTER = f"llm/{WEIGHTS}"
FILES = {"config.json": b"{}", "first.bin": b"one", "second.bin": b"two"}
"""A repository whose config names no architecture, for which no process imports transformers."""
ERROR = "regionqa: error: "


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with random weights, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(hub: Hub, checkpoint: Path) -> Hub:
    """The Hub server with the tiny model."""
    hub.add(TINY, checkpoint, licence="apache-2.0")
    return hub


@pytest.fixture
def published(hub: Hub, starter: Bundle) -> Hub:
    """The Hub server with the starter."""
    hub.add("ann/cats", starter.root)
    return hub


def log_in(monkeypatch: pytest.MonkeyPatch, token: str = "hf_ann") -> str:
    """Have the client send a token."""
    monkeypatch.setenv("HF_TOKEN", token)
    return token


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the client offline, as HF_HUB_OFFLINE=1 does."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class Finished(NamedTuple):
    """Output of a process."""

    status: int
    out: str
    err: str


def in_process(*words: str, limit: int | None = None, **settings: str) -> Finished:
    """Run the command in a subprocess, with HF_ENDPOINT and HF_HOME of the fixture."""

    def limit_files() -> None:
        import resource

        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ran = subprocess.run(
        [sys.executable, "-m", "regionqa", *words],
        capture_output=True, text=True, timeout=900, check=False, env={**os.environ, **settings},
        preexec_fn=limit_files if limit else None,
    )  # fmt: skip
    return Finished(ran.returncode, ran.stdout, ran.stderr)


# -- what works ------------------------------------------------------------------------------------


def test_download(regionqa: "Command", tiny: Hub, checkpoint: Path) -> None:
    ran = regionqa("download", TINY)
    assert (ran.status, ran.err) == (0, f"licence of {TINY}: apache-2.0\n")
    (folder,) = ran.lines
    assert contents(Path(folder)) == contents(checkpoint)
    again = regionqa("download", TINY)
    assert (again.status, again.out, again.err) == (0, ran.out, "")
    assert len(tiny.fetched(WEIGHTS)) == 1


def test_download_removes_leftovers_of_killed_downloads(
    regionqa: "Command", tiny: Hub, checkpoint: Path
) -> None:
    """Those of files that are complete; another process may be fetching the others."""
    (folder,) = regionqa("download", TINY).lines
    blob = Path(folder, WEIGHTS).resolve()
    stale = blob.with_name(f"{blob.name}.33c26ec9.incomplete")
    other = blob.with_name(f"{'0' * 64}.33c26ec9.incomplete")
    for part in (stale, other):
        part.write_bytes(b"half")
    assert regionqa("download", TINY).status == 0
    assert (stale.exists(), other.exists()) == (False, True)
    assert contents(Path(folder)) == contents(checkpoint)


def test_dry_run_fetches_nothing(regionqa: "Command", tiny: Hub, checkpoint: Path) -> None:
    ran = regionqa("download", TINY, "--dry-run")
    assert (ran.status, ran.err) == (0, f"licence of {TINY}: apache-2.0\n")
    sizes = {path: readable(len(data)) for path, data in contents(checkpoint).items()}
    *files, total = ran.lines
    assert {line[14:]: line[:12].strip() for line in files} == sizes
    whole = readable(sum(map(len, contents(checkpoint).values())))
    assert total.strip() == f"{whole}  in total; {whole} to fetch"
    assert cached(TINY) is None
    regionqa("download", TINY)
    assert regionqa("download", TINY, "--dry-run").lines[-1].endswith("in total; 0 bytes to fetch")


def test_download_in_a_subprocess(tiny: Hub, checkpoint: Path, tmp_path: Path) -> None:
    ran = in_process("download", TINY)
    assert (ran.status, ran.err) == (0, f"licence of {TINY}: apache-2.0\n")
    folder = Path(ran.out.strip())
    assert contents(folder) == contents(checkpoint)
    assert folder.is_relative_to(tmp_path / "hf-home")
    asked = len(tiny.requests)
    offline = in_process("download", TINY, HF_HUB_OFFLINE="1")
    assert (offline.status, offline.out, offline.err) == (0, ran.out, "")
    assert len(tiny.requests) == asked
    other = in_process("download", "ann/other", HF_HUB_OFFLINE="1")
    assert (other.status, other.out) == (1, "")
    assert other.err == (
        f"{ERROR}ann/other: not, or not wholly, on this machine, and HF_HUB_OFFLINE forbids to "
        "fetch it; connect once without it, or give a local folder\n"
    )


def test_hub_model_answers_and_is_fetched_once(
    regionqa: "Command", published: Hub, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("ask", cat, "what is this?", "--box", "120,20,400,290", "--device", "cpu")
    ran = regionqa(*words, "--model", "ann/cats")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == regionqa(*words).out
    asked = len(published.requests)
    assert regionqa(*words, "--model", "ann/cats").out == ran.out
    assert len(published.requests) == asked
    go_offline(monkeypatch)
    assert regionqa(*words, "--model", "ann/cats").out == ran.out


def test_snapshot_with_symlinks_is_a_valid_bundle(published: Hub, starter: Bundle) -> None:
    bundle = find_bundle("ann/cats")
    assert (bundle.root / WEIGHTS_OF_STARTER).is_symlink()
    assert bundle.card == starter.card
    assert bundle.broken_files() == []


def test_ask_fetches_listed_files_only(hub: Hub, starter: Bundle) -> None:
    hub.add("ann/cats", {**contents(starter.root), "train/huge.bin": b"x" * 1000})
    assert not (find_bundle("ann/cats").root / "train").exists()
    assert hub.fetched("train/huge.bin") == []


def test_local_folder_precedes_hub_name(
    hub: Hub, starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(starter.root, tmp_path / "ann" / "cats")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("ann/cats").root == Path("ann/cats")
    assert local_or_hub("ann/cats") == Path("ann/cats")
    assert hub.requests == []


def test_ask_does_not_fetch_other_repositories(regionqa: "Command", tiny: Hub, cat: Path) -> None:
    ran = regionqa("ask", cat, "what is this?", "--model", TINY)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(
        f"{ERROR}{TINY}: its config.json says model_type 'llama', which no card covers; known are "
    )
    assert tiny.fetched(WEIGHTS) == []


def test_ask_does_not_fetch_what_is_no_model(regionqa: "Command", hub: Hub, cat: Path) -> None:
    hub.add(TINY, {"data.csv": b"1", "readme.txt": b""})
    ran = regionqa("ask", cat, "what is this?", "--model", TINY)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        f"{ERROR}{TINY}: holds no file card.toml at revision main; what it holds is listed at "
        f"{hub.url}/{TINY}\n"
    )
    assert hub.fetched("data.csv") == []


def test_newer_revision_fetches_changed_files_only(
    regionqa: "Command", tiny: Hub, checkpoint: Path
) -> None:
    old = regionqa("download", TINY).out
    tiny.add(TINY, {**contents(checkpoint), "config.json": b'{"new": true}'})
    assert cached(TINY) == Path(old.strip())
    new = Path(regionqa("download", TINY).out.strip())
    assert (new / "config.json").read_bytes() == b'{"new": true}'
    assert len(tiny.fetched(WEIGHTS)) == 1
    assert len(tiny.fetched("config.json")) == 2
    assert cached(TINY) == new
    assert regionqa("download", TINY, "--revision", Path(old).name.strip()).out == old


def test_revision_published_during_download(
    tiny: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**contents(checkpoint), "config.json": b"{}"}
    monkeypatch.setattr("regionqa.bundles.hub.check_space", lambda *_: tiny.add(TINY, newer))
    assert contents(fetch(TINY)) == newer


def test_include_and_exclude_patterns(tiny: Hub) -> None:
    folder = fetch(TINY, files=["config.json", "*.safetensors", "*.none"])
    assert set(contents(folder)) == {"config.json", WEIGHTS}
    assert cached(TINY, files=["config.json"]) == folder
    assert cached(TINY, files=["generation_config.json"]) is None
    assert cached(TINY) is None


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": ["mit", "cc0-1.0"]}, "mit, cc0-1.0"),
        ({"license": "other", "license_name": "nc", "license_link": "LICENSE"}, "nc, LICENSE"),
        ({"license": "other"}, "other"),
        ({}, None),
    ],
)
def test_licences(tiny: Hub, licence: dict[str, Any], expected: str | None) -> None:
    tiny.repos[TINY].card = licence
    assert list_files(TINY).licence == expected


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("ann/cats", True), ("ann/cats-1.5_b", True), ("cats", False), ("ann/cats/x", False),
        ("./cats", False), ("../cats", False), ("/ann/cats", False), ("~ann/cats", False),
        ("ann/", False), ("here/there", False), ("ann/c ts", False), ("ann\\cats", False),
        (Path("ann/cats"), False),
    ],
)  # fmt: skip
def test_is_repository_name(
    name: str | Path, looks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "there").touch()
    monkeypatch.chdir(tmp_path)
    assert looks_like_repo(name) is looks


def test_neither_folder_nor_repository(tmp_path: Path) -> None:
    assert local_or_hub(str(tmp_path)) == tmp_path
    with pytest.raises(DownloadError) as caught:
        local_or_hub("tiny")
    assert str(caught.value) == (
        "tiny: neither a folder here nor a repository's name, which is written OWNER/NAME"
    )


# -- what the Hub refuses --------------------------------------------------------------------------


@pytest.fixture
def fails(regionqa: "Command") -> Iterator[Callable[..., str]]:
    """Run a download that must fail with one line on stderr; return the line."""

    def run(*words: str) -> str:
        ran = regionqa("download", *words)
        assert (ran.status, ran.out) == (1, "")
        line = ran.err.removeprefix(f"licence of {TINY}: apache-2.0\n")
        assert line.startswith(ERROR) and line.endswith("\n") and line.count("\n") == 1
        return line.removeprefix(ERROR).strip()

    return run  # type: ignore[return-value]


Fails = Callable[..., str]
NOT_FOUND = (
    "no such repository on the Hub, and no folder here; check the spelling, or, if it is private, "
    "log in first: hf auth login"
)


@pytest.mark.parametrize("token", ["", "hf_ann"])
def test_missing_repository(
    fails: Fails, tiny: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    if token:
        log_in(monkeypatch, token)
    assert fails("ann/tiny-lama") == f"ann/tiny-lama: {NOT_FOUND}"
    assert tiny.requests[-1].status == (404 if token else 401)


def test_private_repository(
    fails: Fails, hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(TINY, checkpoint, private=True)
    assert fails(TINY) == f"{TINY}: {NOT_FOUND}"
    hub.repos[TINY].readers.add(log_in(monkeypatch))
    assert contents(fetch(TINY)) == contents(checkpoint)


def test_gated_repository(
    fails: Fails, hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(TINY, checkpoint, gated=True)
    terms = f"{TINY}: its owner asks everyone to accept terms first"
    assert fails(TINY) == (
        f"{terms} (401); accept them at {hub.url}/{TINY}, then log in: hf auth login"
    )
    token = log_in(monkeypatch)
    assert fails(TINY) == (
        f"{terms} (403); your token is known but has not; accept them at {hub.url}/{TINY}, then "
        "run again"
    )
    hub.repos[TINY].readers.add(token)
    assert contents(fetch(TINY)) == contents(checkpoint)


def test_missing_revision(fails: Fails, tiny: Hub) -> None:
    assert fails(TINY, "--revision", "v9") == (
        f"{TINY}: has no revision 'v9'; its page lists them: {tiny.url}/{TINY}"
    )


def test_file_missing_from_repository(tiny: Hub) -> None:
    for files in (["config.json", "vocab.txt"], ["*.bin"]):
        with pytest.raises(DownloadError) as caught:
            fetch(TINY, files=files)
        assert str(caught.value) == (
            f"{TINY}: holds no file {files[-1]} at revision main; what it holds is listed at "
            f"{tiny.url}/{TINY}"
        )


def test_listed_file_is_gone(fails: Fails, tiny: Hub) -> None:
    tiny.lose(TINY, "config.json")
    assert fails(TINY) == (
        f"{TINY}: the Hub lists config.json but does not have it; tell its owner, or name another "
        "--revision"
    )


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (401, "the Hub does not accept the token (401); log in again: hf auth login"),
        (403, "the token gives no access (403); ask for it at {page}, or log in with another: "
              "hf auth login"),
        (418, "the Hub refuses (418): I'm a Teapot"),
        (429, "the Hub asks for a pause (429, too many requests); run again in minutes"),
        (503, "the Hub is out of order (503); run again later"),
    ],
)  # fmt: skip
def test_other_http_errors(fails: Fails, tiny: Hub, status: int, line: str) -> None:
    tiny.status = status
    assert fails(TINY) == f"{TINY}: {line.format(page=f'{tiny.url}/{TINY}')}"


def test_response_not_from_the_hub(fails: Fails, tiny: Hub) -> None:
    tiny.page = b"<html>please log in</html>"
    line = fails(TINY)
    assert line.startswith(f"{TINY}: the Hub's answer makes no sense (JSONDecodeError: ")
    assert line.endswith("; is there a proxy in between?")


@pytest.mark.parametrize("name", ["ann/cats/x", "an n/cats", "ann/..cats"])
def test_invalid_repository_names(fails: Fails, hub: Hub, name: str) -> None:
    assert fails(name) == f"{name}: not a repository's name; it is written OWNER/NAME"
    assert hub.requests == []


# -- the connection --------------------------------------------------------------------------------


def test_offline_without_cache(fails: Fails, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(TINY, files=["config.json"])
    go_offline(monkeypatch)
    line = (
        "not, or not wholly, on this machine, and HF_HUB_OFFLINE forbids to fetch it; connect once "
        "without it, or give a local folder"
    )
    assert fails(TINY) == f"{TINY}: {line}"
    assert fails("ann/other") == f"ann/other: {line}"


def test_cache_is_used_without_connection(fails: Fails, regionqa: "Command", tiny: Hub) -> None:
    folder = regionqa("download", TINY).out
    tiny.down()
    assert in_process("download", TINY) == (
        0, folder, f"{TINY}: the Hub cannot be reached; what is on this machine is used\n"
    )  # fmt: skip
    line = fails("ann/other")
    assert line.startswith(
        "ann/other: not, or not wholly, on this machine, and the Hub cannot be reached (ConnectErr"
    )
    assert line.endswith("); connect once, or give a local folder")


def test_broken_download_resumes(tiny: Hub, checkpoint: Path) -> None:
    """The client writes 10 MiB at a time; an incomplete piece is fetched again."""
    piece, data = constants.DOWNLOAD_CHUNK_SIZE, os.urandom(12 << 20)
    tiny.add(TINY, {"big.bin": data})
    tiny.break_after(TINY, "big.bin", 11 << 20)
    ran = in_process("download", TINY)
    assert (ran.status, ran.err) == (0, "")
    first, second = tiny.fetched("big.bin")
    assert ("Range" in first.headers, second.headers["Range"]) == (False, f"bytes={piece}-")
    assert (first.sent, second.status, second.sent) == (11 << 20, 206, len(data) - piece)
    assert (Path(ran.out.strip()) / "big.bin").read_bytes() == data


def test_connection_keeps_breaking(fails: Fails, tiny: Hub, checkpoint: Path) -> None:
    """Run again, the client restarts this file and keeps complete ones."""
    tiny.break_after(TINY, WEIGHTS, 100, times=20)
    line = fails(TINY)
    assert line.startswith(f"{TINY}: the connection broke (RemoteProtocolError: ")
    assert line.endswith("); run again: files that are complete are kept")
    assert cached(TINY) is None
    tiny.mend(TINY)
    assert contents(fetch(TINY)) == contents(checkpoint)
    assert len(tiny.fetched("config.json")) == 1
    assert tiny.fetched(WEIGHTS)[-1].sent == len(tiny.files(TINY)[WEIGHTS])


# -- what arrives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_wrong_digest(fails: Fails, tiny: Hub, checkpoint: Path, path: str) -> None:
    tiny.corrupt(TINY, path)
    assert fails(TINY) == (
        f"{TINY}: arrived damaged and was removed (its digest is not the Hub's): {path}; run again "
        "to fetch it anew"
    )
    assert cached(TINY) is None
    tiny.mend(TINY)
    assert contents(fetch(TINY)) == contents(checkpoint)
    assert len(tiny.fetched(path)) == 2


def test_wrong_size(fails: Fails, tiny: Hub, checkpoint: Path) -> None:
    tiny.shorten(TINY, WEIGHTS)
    line = fails(TINY)
    assert line.startswith(f"{TINY}: did not arrive whole (OSError: Consistency check failed: ")
    assert line.endswith("); run again: files that are complete are kept")
    tiny.mend(TINY)
    assert contents(fetch(TINY)) == contents(checkpoint)


def test_downloaded_files_are_compared_with_the_card(
    fails: Fails, hub: Hub, starter: Bundle
) -> None:
    files = contents(starter.root)
    hub.add("ann/cats", {**files, "vision.onnx": files["vision.onnx"][:-1]})
    size = len(files["vision.onnx"])
    message = f"vision.onnx: has {size - 1} bytes, the card says {size}"
    assert message in fails("ann/cats")


@pytest.mark.parametrize("path", ["../../../secret", "/etc/passwd", "llm/../../x", "a\\..\\b", ""])
def test_card_cannot_name_files_outside_its_folder(
    regionqa: "Command", hub: Hub, starter: Bundle, cat: Path, path: str
) -> None:
    table = (starter.root / CARD).read_text(encoding="utf-8")
    files = dict.fromkeys(contents(starter.root), b"never fetched")
    shown = path.replace("\\", "\\\\")
    for key in ('path = "region.onnx"', 'graph = "region.onnx"', 'folder = "llm"'):
        card = table.replace(key, f'{key.partition(" ")[0]} = "{shown}"')
        hub.add("ann/cats", {**files, CARD: card.encode()})
        ran = regionqa("ask", cat, "what is this?", "--model", "ann/cats")
        assert (ran.status, ran.out) == (1, "")
        assert f"{path!r} is not a path inside the model's folder" in ran.err
        shutil.rmtree(constants.HF_HUB_CACHE)
    assert hub.fetched("vision.onnx") == []


# -- the disk --------------------------------------------------------------------------------------


def test_disk_too_small_is_reported_first(
    fails: Fails, tiny: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1234))
    needed = readable(sum(map(len, contents(checkpoint).values())))
    assert fails(TINY) == (
        f"{TINY}: the disk is full: {needed} are needed, 1.2 kB are free in "
        f"{constants.HF_HUB_CACHE}; free some, or have HF_HOME name a folder on a larger disk"
    )
    files = [asked for asked in tiny.requests if "/resolve/" in asked.path]
    assert {asked.method for asked in files} == {"HEAD"}, "by the client's dry run"


def test_disk_full_during_download(
    fails: Fails, tiny: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        line = fails(TINY)
    assert line.startswith(f"{TINY}: the disk is full: ")
    assert line.endswith("; free some, or have HF_HOME name a folder on a larger disk")
    assert contents(fetch(TINY)) == contents(checkpoint)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix's limits")
def test_file_size_limit(tiny: Hub) -> None:
    tiny.add(TINY, {"big.bin": bytes(200_000)})
    ran = in_process("download", TINY, limit=100_000)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"{ERROR}{TINY}: the disk is full: 200.0 kB are needed, ")
    assert ran.err.count("\n") == 1


def test_unwritable_cache(
    fails: Fails, tiny: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    line = fails(TINY)
    assert line.startswith(f"{TINY}: cannot be kept in {tmp_path / 'file' / 'hub'}: ")
    assert line.endswith("; HF_HOME names another folder")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (1.4e10, "14.0 GB")],
)
def test_readable_sizes(size: float, expected: str) -> None:
    assert readable(int(size)) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix's terminal")
def test_progress_bars_on_a_terminal_only(hub: Hub) -> None:
    import termios

    hub.add(TINY, FILES)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-m", "regionqa", "download", TINY]
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        # Read as it runs: a terminal takes 4 kB, and bars write more the longer they take. Linux
        # ends a terminal by an error, other systems by nothing.
        with suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    assert b"Fetching 3 files" in shown


def test_hub_client_state_is_restored(tiny: Hub) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]

    before = (are_progress_bars_disabled(), client_log.get_verbosity())
    fetch(TINY)
    assert (are_progress_bars_disabled(), client_log.get_verbosity()) == before
