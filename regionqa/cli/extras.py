"""Commands that need more packages than asking does: which, and where they come from."""

from importlib.util import find_spec

from regionqa.errors import UsageError

EXPORT = ("onnxscript", "tomli_w")
FINETUNE = (*EXPORT, "accelerate", "peft", "tensorboard", "matplotlib")
PLOT = ("matplotlib",)
EVAL = (*PLOT, "sentence_transformers")
"""Packages of the extras in pyproject.toml, by the names they are imported as."""


def require(command: str, extra: str, packages: tuple[str, ...]) -> None:
    """UsageError, naming the extra, where a command's packages are not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{command} needs {missing[0]}, which is not installed: pip install 'regionqa[{extra}]'"
        )
