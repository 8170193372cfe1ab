"""Pickles of datasets, from which nothing but plain data is taken.

Loading a pickle can run any code. Here every class and function is refused, except containers that
Python itself has.
"""

import pickle
from pathlib import Path
from typing import Any

from regionqa.data.containers.json_files import unreadable
from regionqa.errors import DataError

ALLOWED = {
    ("builtins", "set"), ("builtins", "frozenset"), ("__builtin__", "set"),
    ("__builtin__", "frozenset"), ("collections", "OrderedDict"),
}  # fmt: skip
"""What a pickle may name. Lists, dictionaries, text and numbers are named by none."""
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip
"""What Python raises for bytes that are no pickle, or only a part of one."""


class PlainUnpickler(pickle.Unpickler):
    """Unpickler that refuses every class and function outside `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; DataError for any other name."""
        if (module, name) not in ALLOWED:
            raise DataError(
                f"is a pickle that would import {module}.{name}, which plain data does not need; "
                "it is not opened"
            )
        return super().find_class(module, name)


def load_plain(path: Path) -> Any:
    """Load a pickle of containers, text and numbers, also one that Python 2 wrote.

    Raises:
        DataError: If the file cannot be read, is no whole pickle, or names a class or function.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: is not a whole pickle: {reason}; download it again") from None
