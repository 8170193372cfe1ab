"""What a reply names: one of a list of classes, by their names and what people call them.

    ClassNames(["dog", "hot dog", "cell phone"], common_synonyms()).named("two puppies.")  # "dog"

It reads words only; which words mean what stands in synonyms.toml, and in files of users.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from regionqa.data.english import plural
from regionqa.errors import DataError

Words = tuple[str, ...]
Synonyms = Mapping[str, Sequence[str]]
UNSURE = re.compile(
    r"\b(not (quite |really |very |too )?(sure|certain)|unsure|uncertain|no idea"
    r"|(do not|don'?t|dont) know|(can ?not|can'?t|cant) (tell|say|see what))\b"
)
"""How a reply says that it will not say."""


def words_of(text: str) -> Words:
    """Lower-case words, without marks between them; "the dog's-bed" is the dog s bed."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return tuple(re.findall(r"[^\W_]+", plain))


def is_unsure(reply: str) -> bool:
    """Whether the reply says that it does not know."""
    return bool(UNSURE.search(reply.casefold().replace("\u2019", "'")))


@cache
def common_synonyms() -> Synonyms:
    """What people call COCO's 80 classes."""
    return read_synonyms(Path(__file__).parent / "synonyms.toml")


def read_synonyms(path: Path) -> Synonyms:
    """A TOML table of names and lists of synonyms, in file order; DataError where it is not one."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; name a file") from None
    except ValueError as error:
        raise DataError(
            f'{path}: is not TOML that can be read: {error}; write "cell phone" = ["phone"]'
        ) from None
    for name, synonyms in table.items():
        if not isinstance(synonyms, list) or not all(isinstance(each, str) for each in synonyms):
            raise DataError(
                f'{path}: {name!r} is {synonyms!r}, not a list of texts; write {name} = ["..."]'
            )
        for text in (name, *synonyms):
            if not words_of(text):
                raise DataError(f"{path}: {text!r} of {name!r} holds no word; remove it")
    return table


class ClassNames:
    """The classes that a reply may name."""

    def __init__(self, names: Sequence[str], *synonyms: Synonyms) -> None:
        """names: what counts as a class. synonyms: tables, of which only those of `names` count.

        Where two classes could be meant by a phrase, a name goes before a synonym, and what is
        written before a plural that follows from it.
        Raises DataError where a phrase is a synonym of two classes.
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
                    f"{' '.join(phrase)!r} is a synonym of {meant!r} and of {name!r}; "
                    "leave it to one"
                )
        for name in self.names:
            self._meant.setdefault(words_of(plural(name)), name)
        for name, phrases in written.items():
            for phrase_text in phrases:
                self._meant.setdefault(words_of(plural(phrase_text)), name)
        self._longest = max(map(len, self._meant), default=0)

    def named(self, reply: str) -> str | None:
        """The class that a reply names, as whole words; None where it names none, or is unsure.

        Longer phrases go before shorter ones that overlap them ("hot dog" is no dog); of several
        that do not, the first counts.
        """
        if is_unsure(reply):
            return None
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
        return min(found)[1] if found else None


def _pairs(written: Mapping[str, Sequence[str]]) -> Iterator[tuple[Words, str]]:
    for name, phrases in written.items():
        for phrase in phrases:
            yield words_of(phrase), name
