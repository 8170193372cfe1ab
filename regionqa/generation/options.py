"""Options of `data generate`."""

from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path

from regionqa.data.streams.shards import Shard
from regionqa.errors import UsageError
from regionqa.files import is_special
from regionqa.flags import Options, Reads, Section, Writes, option, parse_choice

ALL = "all"
"""Value of --kinds that stands for every kind."""


class GenerationKind(StrEnum):
    """Kinds of conversations that are generated."""

    small = "small"
    """A question about a small object."""
    relations = "relations"
    """A question about how objects stand to each other."""
    text = "text"
    """A question about text in the image."""
    attributes = "attributes"
    """A question about what an object is like."""
    category = "category"
    """A question that tells objects of one name apart."""
    multi_turn = "multi-turn"
    """Several questions, which a second request answers."""
    general = "general"
    """Questions about the whole scene, each grounded in boxes."""


class DuplicateScope(StrEnum):
    """Where near-duplicates are looked for."""

    image = "image"
    file = "file"
    none = "none"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DataGenerationOptions(Options):
    """What is generated, how it is checked, and what it may cost."""

    out: Path = option(
        MISSING,
        "JSON-lines file of training records to write.",
        "--out",
        "-o",
        section=Section.result,
        role=Writes.results,
    )
    text_model: str | None = option(
        None,
        "Folder, or OWNER/NAME on the Hub, of a language model in transformers, which is asked on "
        "this machine instead of a server.",
        metavar="MODEL",
        section=Section.model,
        role=Reads.model,
        excludes=("server", "server_model", "server_timeout", "server_concurrency"),
    )
    look_with: str | None = option(
        None,
        "Vision model of `models list`, a folder, or OWNER/NAME on the Hub, that describes each "
        "region of an image first; what it says is told to the language model as facts.",
        metavar="MODEL",
        section=Section.model,
        role=Reads.model,
    )
    rejected: Path | None = option(
        None,
        "JSON-lines file of rejected replies, each with its reason. Default: beside --out.",
        section=Section.result,
        role=Writes.results,
    )
    resume: bool = option(
        False, "Continue an earlier run; nothing is asked twice.", section=Section.result
    )
    kinds: str = option(
        ALL,
        f"Kinds of questions, separated by commas: {', '.join(GenerationKind)}.",
        metavar="A,B,...",
        section=Section.method,
    )
    per_image: int | None = option(
        None,
        "Number of kinds per image, drawn at random. Default: all that its annotations allow.",
        section=Section.method,
        min=1,
    )
    seed: int = option(
        0, "Random seed of the kinds and examples drawn, and of sampling.", section=Section.method
    )
    temperature: float = option(
        0.7, "Sampling temperature; 0 is greedy.", section=Section.method, min=0
    )
    max_new_tokens: int = option(
        1024, "Maximum length of a reply in tokens.", section=Section.method, min=1
    )
    judge: bool = option(
        False,
        "Ask in a further request whether each answer follows from the annotations.",
        section=Section.method,
    )
    max_words: int = option(
        100, "Maximum length of an answer in words.", section=Section.method, min=1
    )
    near_duplicates: DuplicateScope = option(
        DuplicateScope.image,
        "Where near-duplicates are looked for and rejected: within an image, or the whole file.",
        section=Section.method,
    )
    server_concurrency: int = option(
        8, "Requests that the server is sent at the same time.", section=Section.runtime, min=1
    )
    max_requests: int | None = option(
        None, "Number of requests after which no more are sent.", section=Section.runtime, min=1
    )
    max_tokens: int | None = option(
        None,
        "Number of tokens, of prompts and replies, after which no more requests are sent.",
        section=Section.runtime,
        min=1,
    )
    shard: str | None = option(
        None,
        "Part of the images, such as 2/8; the parts together are what is generated without it.",
        metavar="I/N",
        section=Section.runtime,
    )

    def check(self) -> None:
        """Refuse kinds and shards that there are not, and outputs that cannot be continued."""
        _ = self.chosen_kinds, self.part
        if is_special(self.out) or not self.out.stem:
            raise UsageError(f"--out {self.out}: name a file; replies are kept beside it")
        if self.rejected == self.replies_file:
            raise UsageError(
                f"--rejected {self.rejected}: holds the replies of --out {self.out}; name another"
            )
        if not self.part.whole and self.near_duplicates is DuplicateScope.file:
            raise UsageError(
                "--near-duplicates file: needs all images, and --shard has a part of them; use "
                "--near-duplicates image, or drop --shard"
            )

    @property
    def chosen_kinds(self) -> tuple[GenerationKind, ...]:
        """The kinds, in the order of `GenerationKind`; UsageError for one that there is not."""
        if self.kinds.strip() == ALL:
            return tuple(GenerationKind)
        names = [name.strip() for name in self.kinds.split(",") if name.strip()]
        chosen = {parse_choice(GenerationKind, name, "--kinds") for name in names}
        if not chosen:
            raise UsageError(f"--kinds: name some of {', '.join(GenerationKind)}")
        return tuple(kind for kind in GenerationKind if kind in chosen)

    @property
    def part(self) -> Shard:
        """The part of the images; UsageError if it is none."""
        return Shard.parse(self.shard)

    @property
    def rejected_file(self) -> Path:
        """Where rejected replies are written."""
        return self.rejected or self.out.with_name(f"{self.out.stem}.rejected.jsonl")

    @property
    def replies_file(self) -> Path:
        """Where replies are kept for --resume."""
        return self.out.with_name(f"{self.out.stem}.replies.jsonl")
