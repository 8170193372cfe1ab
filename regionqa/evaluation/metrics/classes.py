"""The class that a reply names: by the words in it, or by a sentence encoder.

    ClassNames(["dog", "hot dog", "cell phone"], common_synonyms()).named("two puppies.")  # "dog"

Synonyms come from synonyms.toml and from files of users.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from regionqa.data.english import plural
from regionqa.errors import DataError, UsageError, message_of
from regionqa.files import is_folder
from regionqa.schema import read_toml

Words = tuple[str, ...]
Synonyms = Mapping[str, Sequence[str]]
Classifier = Callable[[Sequence[str]], list[str | None]]
"""Returns the class that each reply names, None where it names none."""
UNSURE = re.compile(
    r"\b(not (quite |really |very |too )?(sure|certain)|unsure|uncertain|no idea"
    r"|(do not|don'?t|dont) know|(can ?not|can'?t|cant) (tell|say|see what))\b"
)
"""Phrases by which a reply says that it does not know."""
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""The default sentence encoder."""
ENCODED_CLASS = "an image of a {}"
"""The sentence that stands for a class (arXiv 2308.13437, section 5)."""


def words_of(text: str) -> Words:
    """Split a text into case-folded words without punctuation: "The dog's" is the, dog, s."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return tuple(re.findall(r"[^\W_]+", plain))


def is_unsure(reply: str) -> bool:
    """Return whether a reply says that it does not know."""
    return bool(UNSURE.search(reply.casefold().replace("\u2019", "'")))


# -- synonyms --------------------------------------------------------------------------------------


@cache
def common_synonyms() -> Synonyms:
    """Return the synonyms of COCO's 80 classes."""
    return read_synonyms(Path(__file__).parent / "synonyms.toml")


def read_synonyms(path: Path) -> Synonyms:
    """Read a TOML table of class names and lists of synonyms, in file order.

    Raises:
        DataError: The file is missing, or is no such table.
    """
    try:
        table = read_toml(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; name another file") from None
    except ValueError as error:
        raise DataError(
            f'{path}: is not valid TOML: {error}; write lines such as "cell phone" = ["phone"]'
        ) from None
    for name, synonyms in table.items():
        if not isinstance(synonyms, list) or not all(isinstance(each, str) for each in synonyms):
            raise DataError(
                f"{path}: the value of {name!r} is {synonyms!r}, not a list of strings; "
                f'write {name} = ["..."]'
            )
        for text in (name, *synonyms):
            if not words_of(text):
                raise DataError(f"{path}: {text!r} of {name!r} has no letters; remove it")
    return table


# -- by words --------------------------------------------------------------------------------------


class ClassNames:
    """Class names with their synonyms and plurals, to be found in replies."""

    def __init__(self, names: Sequence[str], *synonyms: Synonyms) -> None:
        """Collect the phrases that name each class.

        A phrase that could mean two classes means the one whose name it is, rather than one it is a
        synonym of, and the one it is written for, rather than one it is a regular plural of.

        Args:
            names: The classes.
            synonyms: Tables of synonyms; entries of other classes are ignored.

        Raises:
            DataError: A phrase is a synonym of two classes.
        """
        self.names = tuple(dict.fromkeys(names))
        self._meant: dict[Words, str] = {words_of(name): name for name in self.names}
        written = {
            name: [each for table in synonyms for each in table.get(name, ())] for name in names
        }
        for phrase, name in _pairs(written):
            meant = self._meant.setdefault(phrase, name)
            if meant != name and phrase != words_of(meant):
                raise DataError(
                    f"{' '.join(phrase)!r} is a synonym of both {meant!r} and {name!r}; "
                    "remove it from one of them"
                )
        for name in self.names:
            self._meant.setdefault(words_of(plural(name)), name)
        for name, phrases in written.items():
            for phrase_text in phrases:
                self._meant.setdefault(words_of(plural(phrase_text)), name)
        self._longest = max(map(len, self._meant), default=0)

    def named(self, reply: str) -> str | None:
        """Return the first class of `all_named`; None if the reply names none."""
        return next(iter(self.all_named(reply)), None)

    def all_named(self, reply: str) -> tuple[str, ...]:
        """Return the classes that a reply names, as whole words, in their order; each once.

        Longer phrases win over shorter ones that they overlap ("hot dog" is not a dog). A reply
        that is unsure names none.
        """
        if is_unsure(reply):
            return ()
        words = words_of(reply)
        taken = [False] * len(words)
        found: list[tuple[int, str]] = []
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                end = start + length
                name = self._meant.get(words[start:end])
                if name is not None and not any(taken[start:end]):
                    taken[start:end] = [True] * length
                    found.append((start, name))
        return tuple(dict.fromkeys(name for _, name in sorted(found)))

    def classify(self, replies: Sequence[str]) -> list[str | None]:
        """Return the class that each reply names; a `Classifier`."""
        return list(map(self.named, replies))


def _pairs(written: Mapping[str, Sequence[str]]) -> Iterator[tuple[Words, str]]:
    for name, phrases in written.items():
        for phrase in phrases:
            yield words_of(phrase), name


# -- by a sentence encoder -------------------------------------------------------------------------


def encoder_classifier(names: Sequence[str], encoder: str = ENCODER) -> Classifier:
    """Return a classifier by sentence embeddings, as PVIT's authors use (arXiv 2308.13437).

    A reply is compared with "an image of a [CLASS]" for every class, and the one of highest cosine
    similarity counts. So every reply names a class, however little it says. Needs the extra `eval`.

    Args:
        names: The classes.
        encoder: A folder or repository of sentence-transformers.

    Raises:
        UsageError: The encoder cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(Path(encoder)) if is_folder(Path(encoder)) else encoder, device="cpu"
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = message_of(error)[:120]
        raise UsageError(
            f"--encoder {encoder}: cannot be loaded ({reason}); give the folder of a "
            "sentence-transformers model, or OWNER/NAME of one on the Hub"
        ) from error
    sentences = [ENCODED_CLASS.format(name) for name in names]
    classes = model.encode(sentences, normalize_embeddings=True, show_progress_bar=False)  # (C, D)

    def classify(replies: Sequence[str]) -> list[str | None]:
        texts = sorted(set(replies))
        if not texts:
            return []
        encoded = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)  # (T, D)
        nearest = np.argmax(np.asarray(encoded) @ np.asarray(classes).T, axis=1)
        named = {text: names[int(index)] for text, index in zip(texts, nearest, strict=True)}
        return [named[reply] for reply in replies]

    return classify
