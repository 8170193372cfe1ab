"""The value of `--shard`: a part of the items of a file, so that several processes share it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from regionqa.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Every `count`-th item, from the `number`-th; all shards together hold each item once."""

    number: int = 1
    """From 1."""
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """Read a value such as `2/8`; None is the whole.

        Raises:
            UsageError: It is no shard.
        """
        if text is None:
            return WHOLE
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(f"--shard {text!r}: write part and number of parts, as 1/8")
        return cls(number, count)

    @property
    def whole(self) -> bool:
        """Whether every item belongs to the shard."""
        return self.count == 1

    def take(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over the items of the shard, in order."""
        return islice(items, self.number - 1, None, self.count)

    @property
    def suffix(self) -> str:
        """What to say after a number of items; empty for the whole."""
        return "" if self.whole else f" of shard {self.number}/{self.count}"


WHOLE = Shard()
