"""Command-line options made from the dataclasses of `regionqa.options`."""

import inspect
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, wraps
from importlib.util import find_spec
from inspect import Parameter
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import typer

from regionqa.errors import UsageError
from regionqa.flags import FLAG, Flag, Reads, Section, Writes, flag_names

Group = TypeVar("Group")
Result = TypeVar("Result")
DEBUG = Parameter(
    "debug",
    Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)
"""An option of every command, which `regionqa.cli.main` reads."""
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Detector (docs/guide/detect.md), folder, or OWNER/NAME on the Hub. Default: the "
        "default model's own, or the first of the named ones that is downloaded.",
    ),
    Reads.model,
]
"""The model of commands that run an object detector."""


CONTEXT = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
"""What Typer knows about a call: which options were given."""


class Overrides(dict[str, Any], Generic[Group]):
    """The options of a dataclass that the command line gives, by field name.

    A parameter is annotated `Overrides[Settings]` if the defaults of `Settings` are not those of
    the command, because a settings file may stand between the two.
    """


@dataclass(frozen=True)
class Selection:
    """Some of a dataclass's options; `only` and `without` make it."""

    names: frozenset[str]
    included: bool
    section: Section | None = None
    """Section of `--help` to list them in; None: each option's own."""

    def __contains__(self, name: str) -> bool:
        return (name in self.names) == self.included


def only(*names: str, section: Section | None = None) -> Selection:
    """Select options: `Annotated[OutputOptions, only("quiet")]`."""
    return Selection(frozenset(names), included=True, section=section)


def without(*names: str) -> Selection:
    """Leave options out: `Annotated[RuntimeOptions, without("batch_size")]`."""
    return Selection(frozenset(names), included=False)


ALL = without()


@dataclass(frozen=True)
class FileRole:
    """What becomes of the files that an option or argument of a command names."""

    label: str
    """The option as it is typed, or the argument's name."""
    role: Reads | Writes
    unless: str | None = None
    """Name of an option with which nothing is written here."""


@dataclass(frozen=True)
class OptionGroup:
    """A parameter of a command that stands for the options of a dataclass."""

    kind: type
    selection: Selection
    overrides: bool

    @classmethod
    def of(cls, parameter: Parameter) -> "OptionGroup | None":
        """Return the group that a parameter's annotation names; None for a plain parameter."""
        hint, selection = parameter.annotation, ALL
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            selection = next((note for note in notes if isinstance(note, Selection)), ALL)
        overrides = get_origin(hint) is Overrides
        kind = get_args(hint)[0] if overrides else hint
        if not (isinstance(kind, type) and is_dataclass(kind)):
            return None
        return cls(kind, selection, overrides)

    def options(self) -> "Iterator[tuple[Field[Any], Flag]]":
        """Yield the fields that are options here."""
        for item in fields(self.kind):
            if FLAG in item.metadata and item.name in self.selection:
                yield item, item.metadata[FLAG]

    def section(self, flag: Flag) -> Section:
        """Return the section of `--help` that an option of this group is listed in."""
        return flag.section if self.selection.section is None else self.selection.section

    def collect(self, values: Mapping[str, Any]) -> Any:
        """Pick the group's values from those of the command; an instance, or the overrides."""
        given = {}
        for item, _ in self.options():
            value = values[item.name]
            given[item.name] = value if _item_type(item.type) is None else tuple(value or ())
        if self.overrides:
            return Overrides({k: v for k, v in given.items() if not _absent(v)})
        return self.kind(**given)


def with_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the options of the dataclasses that its parameters are annotated with.

    The command receives instances. Options are listed by section, within one in the order of the
    parameters and fields; parameters that are no dataclass belong to the first section. `--debug`
    comes last. While the command runs, the files that its options and arguments name are protected
    according to their roles (`regionqa.pipeline.guard`).

    Raises:
        TypeError: Two options have one name.
    """
    signature = inspect.signature(command)
    groups: dict[str, OptionGroup] = {}
    listed: list[tuple[Section, Parameter]] = []
    for parameter in signature.parameters.values():
        group = OptionGroup.of(parameter)
        if group is None:
            plain = parameter.replace(kind=Parameter.KEYWORD_ONLY)
            listed.append((Section.subject, plain))
            continue
        groups[parameter.name] = group
        listed += [
            (group.section(flag), _parameter(item, group.overrides))
            for item, flag in group.options()
        ]
    parameters = [parameter for _, parameter in sorted(listed, key=lambda entry: entry[0])]
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TypeError(f"{command.__name__}: two options are named {twice!r}")

    roles = file_roles(signature, groups)

    @wraps(command)
    def run(context: typer.Context | None = None, **values: Any) -> Result:
        if context is not None:
            given = {name for name in values if _is_given(context, name)}
            refuse_without_effect(groups.values(), values, given)
        arguments = {name: group.collect(values) for name, group in groups.items()}
        plain = signature.parameters.keys() - groups.keys()
        with guarded_files(roles, values):
            return command(**arguments, **{name: values[name] for name in plain})

    run.undecorated = run.__dict__.pop("__wrapped__")  # type: ignore[attr-defined]
    parameters += [DEBUG, CONTEXT]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.file_roles = roles  # type: ignore[attr-defined]
    return run


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave a parameter, be it with the value of its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def refuse_without_effect(
    groups: Iterable[OptionGroup], values: Mapping[str, Any], given: Set[str]
) -> None:
    """Raise UsageError for an option that would have no effect beside the others.

    Args:
        groups: The groups of a command.
        values: Values of all of its parameters, by name.
        given: Names of those that the user gave.
    """
    flags = {item.name: flag for group in groups for item, flag in group.options()}
    names = {name: flag_names(name, flag)[0] for name, flag in flags.items()}
    for name in sorted(given & flags.keys()):
        needs = flags[name].needs
        if needs and all(need in values and not values[need] for need in needs):
            others = " or ".join(names.get(need, f"--{need}") for need in needs)
            raise UsageError(f"{names[name]}: has no effect without {others}; add one, or drop it")
        for other in flags[name].excludes:
            if other in given:
                raise UsageError(
                    f"{names[other]}: has no effect beside {names[name]}; drop one of the two"
                )


def file_roles(
    signature: inspect.Signature, groups: Mapping[str, OptionGroup]
) -> dict[str, FileRole]:
    """Return the roles of a command's options and arguments that name files, by their names."""
    roles = {}
    for parameter in signature.parameters.values():
        if parameter.name in groups:
            for item, flag in groups[parameter.name].options():
                if flag.role is not None:
                    label = flag_names(item.name, flag)[0]
                    roles[item.name] = FileRole(label, flag.role, flag.unless)
        elif get_origin(parameter.annotation) is Annotated:
            _, info, *notes = get_args(parameter.annotation)
            for role in (note for note in notes if isinstance(note, Reads | Writes)):
                roles[parameter.name] = FileRole(_label(parameter.name, info), role)
    return roles


def _label(name: str, info: Any) -> str:
    """The flag of an option, or the name that an argument has in the help text."""
    if isinstance(info, typer.models.ArgumentInfo):
        return str(info.metavar or name.upper())
    return info.param_decls[0] if info.param_decls else f"--{name.replace('_', '-')}"


def stdout_is_file() -> bool:
    """Return whether the shell redirects stdout to a file."""
    try:
        return stat.S_ISREG(os.fstat(1).st_mode)
    except OSError:
        return False


def guarded_files(
    roles: Mapping[str, FileRole], values: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """Protect the files that a command's options and arguments name while it runs."""
    writes = any(isinstance(r.role, Writes) and values[name] for name, r in roles.items())
    if not writes and not stdout_is_file():
        return nullcontext()
    from regionqa.pipeline.guard import NamedFiles, guarded

    named = []
    for name, known in roles.items():
        value = values[name]
        given = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if given and not (known.unless and values[known.unless]):
            named.append(NamedFiles(known.label, known.role, tuple(map(str, given))))
    # None: the command does not have the option
    return guarded(named, resume=values.get("resume"), overwrite=values.get("overwrite"))


@cache  # commands share groups
def _parameter(item: "Field[Any]", overrides: bool) -> Parameter:
    """Return a field as a parameter that Typer understands."""
    kind: Any = item.type
    flag: Flag = item.metadata[FLAG]
    default, entry = item.default, _item_type(kind)
    if entry is not None:
        kind, default = list[flag.parse or entry], None  # type: ignore[misc]
    elif flag.parse:
        kind = flag.parse
    if overrides:
        default = False if kind is bool else None
    if default is None:
        kind = kind | None
    # not in Annotated, which takes Typer and Python twice as long
    info = typer.Option(
        ... if default is MISSING else default,
        *flag_names(item.name, flag),
        help=flag.help,
        metavar=flag.metavar,
        min=flag.min,
        max=flag.max,
    )
    return Parameter(item.name, Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _absent(value: Any) -> bool:
    """Return whether an option was not given; 0 is a value."""
    return value is None or value is False or value == ()


def _item_type(hint: Any) -> Any:
    """Return the type of the items of `tuple[X, ...]`; None for any other type."""
    arguments = get_args(hint)
    return arguments[0] if get_origin(hint) is tuple and arguments[-1] is Ellipsis else None


EXPORT = ("onnxscript", "sentencepiece", "tomli_w")
FINETUNE = (*EXPORT, "accelerate", "peft", "tensorboard", "matplotlib")
PLOT = ("matplotlib",)
DETECTION = ("faster_coco_eval",)
EVAL = (*PLOT, "sentence_transformers")
GENERATE = ("openai", "datasketch", "xgrammar")
SERVE = ("starlette", "uvicorn")
BATCH = ("ray", "pandas", "pyarrow", "fsspec", "requests")
"""Packages of the extras in pyproject.toml, by the names they are imported as."""


def require(command: str, extra: str, packages: tuple[str, ...]) -> None:
    """Raise UsageError, naming the extra, if packages of a command are not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{command} needs {missing[0]}, which is not installed: pip install 'regionqa[{extra}]'"
        )
