"""Kill commands at random moments, resume them, and compare with an undisturbed run.

    make kill KILLS=200

Each trial starts one of six commands in a process of its own, sends SIGKILL after a random time of
at most the length of an undisturbed run, checks what is left, runs the command to its end, and
compares every file that it writes. Prints a line for each trial that differs, and a summary.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from multiprocessing import Pipe
from pathlib import Path
from tempfile import TemporaryDirectory

Files = dict[str, bytes]


@dataclass(frozen=True)
class Campaign:
    """A command that is killed and resumed."""

    name: str
    words: Sequence[str]
    """The command line; `OUT` stands for the folder of the trial."""
    resumed: Sequence[str]
    """What is added to resume."""
    status: int = 0
    """Exit status of the whole run."""
    environment: Mapping[str, str] | None = None
    ignored: tuple[str, ...] = ()
    """Parts of names of files that are not compared, because they tell the time."""
    check_killed: Callable[[Path, Files], str | None] = lambda out, whole: None
    """What is wrong with the files that a killed run has left, if anything."""
    check_resumed: Callable[[], str | None] = lambda: None
    """What is wrong with how the run was continued, if anything."""


def in_child(action: Callable[[], int], log: Path) -> int:
    """Run an action in a fork of this process, which has imported all libraries; its pid."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(number, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = action()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_command(campaign: Campaign, out: Path, *more: str) -> Callable[[], int]:
    """A function that runs the command in the folder of a trial."""

    def run() -> int:
        from regionqa.cli import main

        words = [word.replace("OUT", str(out)) for word in (*campaign.words, *more)]
        for name, value in (campaign.environment or {}).items():
            os.environ[name] = value.replace("OUT", str(out))
        point_client_at_hub(os.environ)
        return main(words)

    return run


def point_client_at_hub(environment: Mapping[str, str]) -> None:
    """Give the Hub's client, which read its settings when it was imported, those of a trial."""
    from huggingface_hub import constants

    if "HF_HOME" in environment and "HF_ENDPOINT" in environment:
        home, url = environment["HF_HOME"], environment["HF_ENDPOINT"]
        constants.ENDPOINT, constants.HF_HOME, constants.HF_HUB_CACHE = url, home, f"{home}/hub"
        constants.HF_TOKEN_PATH = f"{home}/token"
        constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET = True


def files_in(folder: Path, ignored: tuple[str, ...] = ()) -> Files:
    """Every file of a folder that is not hidden; hidden ones are locks and unfinished parts."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and not any(part in str(path.relative_to(folder)) for part in ignored)
    }


def hidden_in(folder: Path) -> list[str]:
    """Names of hidden files, which a run that has ended should not leave."""
    return [path.name for path in folder.rglob(".*") if path.name != ".locks"]


# -- trials ----------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What the trials of a command have shown."""

    kills: int = 0
    ended_before: int = 0
    """Runs that ended before the kill; they are not counted as kills."""
    wrong: int = 0
    hidden: int = 0
    """Files that stayed behind, hidden."""


def undisturbed(campaign: Campaign, folder: Path) -> tuple[Files, float]:
    """Run a command to its end; its files, and the seconds that it took."""
    out = fresh(folder / "whole")
    begun = time.monotonic()
    child = in_child(run_command(campaign, out), folder / "log")
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status != campaign.status:
        raise SystemExit(f"{campaign.name}: status {status}\n{(folder / 'log').read_text()}")
    seconds = time.monotonic() - begun
    return files_in(out, campaign.ignored), seconds


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def kill_once(
    campaign: Campaign, out: Path, log: Path, delay: float, whole: Files
) -> tuple[bool, str | None]:
    """Start, kill and resume a command; whether it was killed, and what is wrong, if anything."""
    child = in_child(run_command(campaign, out), log)
    time.sleep(delay)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # not yet the leader of its group, or gone
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    killed = os.waitstatus_to_exitcode(ended) == -signal.SIGKILL
    fault = campaign.check_killed(out, whole)
    if fault is not None:
        return killed, f"after the kill: {fault}"
    child = in_child(run_command(campaign, out, *campaign.resumed), log)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status != campaign.status:
        return killed, f"resumed with status {status}: {log.read_text()[-600:]}"
    return killed, difference(files_in(out, campaign.ignored), whole) or campaign.check_resumed()


def difference(found: Files, whole: Files) -> str | None:
    """What differs between two folders; None if nothing does."""
    lost, more = sorted(whole.keys() - found.keys()), sorted(found.keys() - whole.keys())
    other = [name for name in whole.keys() & found.keys() if whole[name] != found[name]]
    parts = [f"{kind} {names}" for kind, names in
             (("lost", lost), ("doubled", more), ("different", other)) if names]  # fmt: skip
    return "; ".join(parts) or None


def run_trials(
    campaigns: Sequence[Campaign], kills: int, minutes: float, folder: Path, rng: random.Random
) -> dict[str, Summary]:
    """Kill the commands in turn, so often or for so long."""
    whole = {}
    for each in campaigns:
        whole[each.name] = undisturbed(each, fresh(folder))
        files, seconds = whole[each.name]
        print(f"{each.name}: {len(files)} files, {seconds:.1f} s undisturbed", flush=True)
    summaries = {each.name: Summary() for each in campaigns}
    deadline, turns = time.monotonic() + 60 * minutes, cycle(campaigns)
    while sum(each.kills for each in summaries.values()) < kills and time.monotonic() < deadline:
        campaign = next(turns)
        files, seconds = whole[campaign.name]
        delay, out, log = rng.uniform(0, seconds), fresh(folder / "out"), folder / "log"
        log.unlink(missing_ok=True)
        killed, fault = kill_once(campaign, out, log, delay, files)
        summary = summaries[campaign.name]
        summary.kills += killed
        summary.ended_before += not killed
        summary.hidden += len(hidden_in(out))
        if fault is not None:
            summary.wrong += 1
            print(f"{campaign.name}: killed after {delay:.3f} s: {fault}", flush=True)
    return summaries


# -- the commands ----------------------------------------------------------------------------------


def lines_are_a_beginning(out: Path, whole: Files) -> str | None:
    """Whether the answers so far are the first ones, the last perhaps cut."""
    path = out / "out.jsonl"
    written = path.read_bytes() if path.exists() else b""
    return None if whole["out.jsonl"].startswith(written) else "other answers are written"


def old_or_new(name: str, old: bytes | None) -> Callable[[Path, Files], str | None]:
    """Check that a file is the old one or the whole new one."""

    def check(out: Path, whole: Files) -> str | None:
        path = out / name
        found = path.read_bytes() if path.exists() else None
        return None if found in (old, whole[name]) else f"{name} is neither old nor whole"

    return check


def captions(material: Path) -> Campaign:
    """Answers as JSON lines, and drawings."""
    return Campaign(
        "caption --out --draw",
        ("caption", str(material / "images"), "--box", "5,5,60,60", "--box", "8,2,30,40",
         "--format", "jsonl", "--out", "OUT/out.jsonl", "--draw", "OUT/drawn",
         "--model", str(material / "levels"), "--device", "cpu", "--batch-size", "2"),
        ("--resume",),
        check_killed=lines_are_a_beginning,
    )  # fmt: skip


def training(material: Path) -> Campaign:
    """Two stages with LoRA, dropout and box noise."""
    return Campaign(
        "finetune",
        ("finetune", "--data", str(material / "things" / "things.jsonl"), "--model",
         str(material / "levels"), "--settings", str(material / "settings.toml"), "--steps", "5",
         "--batch", "4", "--learning-rate", "0.01", "--box-noise", "0.1", "--evaluate-every", "3",
         "--save-every", "2", "--rehearse", "1", "--device", "cpu", "--quiet", "--out", "OUT/mine"),
        ("--resume",),
        ignored=("log.jsonl", "curves.png", "tensorboard/"),
    )  # fmt: skip


def conversion(material: Path) -> Campaign:
    """Training data as JSON lines."""
    return Campaign(
        "data convert",
        ("data", "convert", str(material / "many.jsonl"), "--images", str(material / "things"),
         "--out", "OUT/mine.jsonl"),
        ("--overwrite",),
        check_killed=old_or_new("mine.jsonl", None),
    )  # fmt: skip


def fetching(material: Path, url: str) -> Campaign:
    """A model from a stand-in for the Hub."""
    home = {"HF_HOME": "OUT/home", "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    return Campaign(
        "download",
        ("download", "ann/tiny"),
        (),
        environment=home,
        ignored=(".locks/", "CACHEDIR.TAG"),
    )


# -- material --------------------------------------------------------------------------------------


def make_material(folder: Path) -> int:
    """A tiny model, images, records and settings, made in a process of its own."""
    from PIL import Image

    from helpers.tiny_models import tiny_bundle, two_things

    tiny_bundle("levels", folder)
    lines = two_things(folder / "things", 12).read_text().splitlines(keepends=True)
    (folder / "many.jsonl").write_text("".join(lines * 100))
    (folder / "images").mkdir()
    for number in range(12):
        size, colour = (90 + number, 70), (20 * number, 90, 120)
        Image.new("RGB", size, colour).save(folder / "images" / f"{number:02}.png")
    (folder / "settings.toml").write_text(
        "lora_rank = 4\nlora_dropout = 0.1\n[instruct]\northogonal_rate = 0.2\n"
    )
    return 0


@contextmanager
def hub_process(material: Path) -> Iterator[str]:
    """The stand-in for the Hub in a process of its own, which has threads; its address."""
    ours, theirs = Pipe()

    def serve() -> int:
        from helpers.hub_server import Hub

        ours.close()
        hub = Hub()
        hub.add("ann/tiny", material / "levels")
        theirs.send(hub.url)
        theirs.poll(None)
        os._exit(0)

    child = in_child(serve, material / "hub.log")
    theirs.close()
    try:
        yield str(ours.recv())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def import_libraries() -> None:
    """Import once what every trial needs."""
    import datasketch  # noqa: F401
    import filelock  # noqa: F401
    import huggingface_hub  # noqa: F401
    import openai  # noqa: F401
    import torch

    import regionqa.cli.data
    import regionqa.cli.finetune
    import regionqa.finetune.run
    import regionqa.generation.run
    import regionqa.pipeline.run  # noqa: F401

    torch.set_num_threads(1)


def main() -> int:
    """Run the campaigns; 1 if anything was lost, doubled or different."""
    from campaigns.server_kills import asking, chat_process, generating

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="number of kills in all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="names of commands, separated by commas")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    import_libraries()
    with TemporaryDirectory(prefix="regionqa-kills-") as root:
        material = fresh(Path(root, "material"))
        child = in_child(partial(make_material, material), Path(root, "log"))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit(Path(root, "log").read_text())
        with hub_process(material) as url, chat_process(material) as server:
            campaigns = [captions(material), training(material), conversion(material),
                         fetching(material, url), asking(material, server),
                         generating(material, server)]  # fmt: skip
            if options.only:
                wanted = options.only.split(",")
                campaigns = [
                    each for each in campaigns if {each.name, each.name.split()[0]} & {*wanted}
                ]
            rng, trials = random.Random(seed), Path(root, "trial")
            summaries = run_trials(campaigns, options.kills, options.minutes, trials, rng)
    report = {name: vars(summary) for name, summary in summaries.items()}
    print(json.dumps(report, indent=1))
    kills, wrong = (sum(getattr(s, key) for s in summaries.values()) for key in ("kills", "wrong"))
    print(f"{kills} kills, {wrong} with something lost, doubled or different")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
