"""No output of any command replaces an input or earlier results.

The commands and their options are those of the program, so that a new option is tested by itself.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import pytest
import typer

from regionqa.cli.main import app
from regionqa.cli.options import FileRole
from regionqa.files import locked
from regionqa.flags import Reads, Writes

if TYPE_CHECKING:
    from conftest import Command

NO_FILES = {
    "actors", "box", "choices", "find", "host", "kinds", "name", "only", "point", "push",
    "question", "ray_address", "revision", "server", "server_model", "shard", "split", "token",
    "ways",
}  # fmt: skip
"""Options and arguments that take any text, which names no file."""
NEEDED = {
    ("ask", "segmenter"): ("--point", "1,1"),
    ("caption", "segmenter"): ("--point", "1,1"),
    ("data convert", "annotations"): ("--kind", "gqa"),
    ("data convert", "save_images"): ("--kind", "dam"),
    ("init", "vision"): ("--llm", "x"),
    ("init", "vision_weights"): ("--vision", "timm:x", "--llm", "x"),
    ("init", "llm"): ("--vision", "x"),
    ("eval recognition", "encoder"): ("--by", "sentence-encoder"),
    ("eval recognition", "write_card"): ("--ways", "all"),
    ("eval vqa", "write_card"): ("--ways", "all"),
}
"""What a command also needs, where an option is given."""


@dataclass(frozen=True)
class CliCommand:
    """A command, and the roles of its options and arguments."""

    name: str
    function: Callable[..., object]
    parameters: dict[str, Any]

    @property
    def roles(self) -> dict[str, FileRole]:
        """By name of the option or argument."""
        found: dict[str, FileRole] = self.function.file_roles  # type: ignore[attr-defined]
        return found

    def line(self, given: dict[str, str]) -> list[str]:
        """The shortest command line with these values, where the others do not matter."""
        words, values = self.name.split(), []
        for name, parameter in self.parameters.items():
            if name not in given and not parameter.required:
                continue
            writes = name in self.roles and isinstance(self.roles[name].role, Writes)
            value = given.get(name, "dummy-output" if writes else "dummy")
            if parameter.param_type_name == "argument":
                values += [value, *(["what is this?"] if name == "words" else [])]
            else:
                words += [parameter.opts[0], *[value] * max(1, parameter.nargs)]
                words += NEEDED.get((self.name, name), ())
        return [*words, *values]


def commands(command: Any, names: tuple[str, ...] = ()) -> Iterator[CliCommand]:
    """All commands below one."""
    if hasattr(command, "commands"):
        for name in command.commands:
            yield from commands(command.commands[name], (*names, name))
    else:
        parameters = {each.name: each for each in command.params}
        yield CliCommand(" ".join(names), command.callback.__wrapped__, parameters)


COMMANDS = tuple(commands(typer.main.get_command(app)))


def roles(kind: type) -> Iterator[tuple[CliCommand, str]]:
    return (
        (command, name)
        for command in COMMANDS
        for name, role in command.roles.items()
        if isinstance(role.role, kind)
    )


def pairs() -> Iterator[tuple[CliCommand, str, str]]:
    """Every output of every command with every input of the same command."""
    for command, output in roles(Writes):
        for source, role in command.roles.items():
            unless = command.roles[output].unless
            if isinstance(role.role, Reads) and source != unless:
                yield command, output, source


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@contextmanager
def stdin_from(path: Path) -> Iterator[None]:
    """Redirect the process's stdin, as a shell does with `<`."""
    saved, file = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(file, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(file)
        os.close(saved)


def other_names(path: Path) -> Iterator[Callable[[], str]]:
    """Ways to name a file or folder; a link is made when it is asked for."""

    def symbolic() -> str:
        link = path.with_name("symbolic")
        link.symlink_to(path)
        return str(link)

    def hard() -> str:
        if path.is_dir():
            return f"{path}/"
        link = path.with_name("hard")
        link.hardlink_to(path)
        return str(link)

    yield lambda: str(path)
    yield lambda: os.path.relpath(path)
    yield lambda: f"{path.parent}/./{path.name}"
    yield symbolic
    yield hard


# -- roles -----------------------------------------------------------------------------------------


def types_in(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    parts = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    for part in parts:
        yield from types_in(part)
    if not parts:
        yield hint


def test_every_path_has_a_role() -> None:
    unknown = [
        f"{command.name} {name}"
        for command in COMMANDS
        for name, parameter in inspect.signature(command.function).parameters.items()
        if {Path, str} & {*types_in(parameter.annotation)}
        and name not in {*command.roles, *NO_FILES}
    ]
    assert unknown == [], "give them a role, or list them in NO_FILES"


def test_every_command_that_writes_results_can_be_told_to_replace_them() -> None:
    kinds = (Writes.results, Writes.plot, Writes.drawings)
    for command, name in roles(Writes):
        if command.roles[name].role in kinds:
            assert "overwrite" in command.parameters, command.name


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "output", "source", "way"),
    [
        pytest.param(*pair, way, id=f"{pair[0].name} {pair[1]} {pair[2]}".replace(" ", "-"))
        for pair, way in zip(pairs(), cycle(range(5)))
    ],
)
def test_an_output_cannot_name_an_input(
    regionqa: "Command",
    tmp_path: Path,
    command: CliCommand,
    output: str,
    source: str,
    way: int,
) -> None:
    place = tmp_path / "place.jsonl"
    if command.roles[output].role is Writes.folder:
        place.mkdir()
        (place / "file").write_text("precious")
    else:
        place.write_text("precious")
    name = list(other_names(place))[way]()
    before = snapshot(tmp_path)
    result = regionqa(*command.line({output: name, source: str(place)}))
    assert (result.status, result.out) == (2, ""), result.err
    assert snapshot(tmp_path) == before
    if "has no effect beside" not in result.err:
        assert "is also read" in result.err and command.roles[source].label in result.err


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(*each, id=f"{each[0].name} {each[1]}".replace(" ", "-"))
        for each in roles(Writes)
        if each[0].roles[each[1]].role is not Writes.folder
    ],
)
def test_an_output_cannot_name_what_stdin_reads(
    regionqa: "Command", tmp_path: Path, command: CliCommand, output: str
) -> None:
    place = tmp_path / "place.jsonl"
    place.write_text("precious")
    with stdin_from(place):
        result = regionqa(*command.line({output: str(place)}))
    assert (result.status, result.out) == (2, ""), result.err
    assert "is also read (stdin)" in result.err
    assert snapshot(tmp_path) == {"place.jsonl": b"precious"}


@pytest.mark.parametrize(
    ("command", "output", "source"),
    [
        pytest.param(*pair, id=f"{pair[0].name} {pair[1]} {pair[2]}".replace(" ", "-"))
        for pair in pairs()
        if pair[0].roles[pair[1]].role in (Writes.results, Writes.plot)
    ],
)
def test_overwriting_spares_files_in_a_folder_that_is_read(
    regionqa: "Command", tmp_path: Path, command: CliCommand, output: str, source: str
) -> None:
    images = command.roles[source].role in (Reads.images, Reads.request)
    place = tmp_path / "read" / "below" / ("a.tif" if images else "a.txt")
    place.parent.mkdir(parents=True)
    place.write_text("precious")
    line = command.line({output: str(place), source: str(tmp_path / "read")})
    result = regionqa(line[0], *line[1:], "--overwrite")
    assert (result.status, result.out) == (2, ""), result.err
    assert "is also read" in result.err
    assert place.read_text() == "precious"


def test_a_folder_that_is_written_cannot_hold_an_input(regionqa: "Command", tmp_path: Path) -> None:
    for command, output, source in pairs():
        if command.roles[output].role is Writes.folder:
            (tmp_path / "new").mkdir(exist_ok=True)
            (tmp_path / "new" / "file").write_text("precious")
            given = {output: str(tmp_path / "new"), source: str(tmp_path / "new" / "file")}
            result = regionqa(*command.line(given))
            assert result.status == 2 and "is also read" in result.err, (command.name, source)


def test_two_outputs_cannot_be_one_file(regionqa: "Command", tmp_path: Path) -> None:
    for command, output in roles(Writes):
        for other, role in command.roles.items():
            if other != output and isinstance(role.role, Writes):
                given = {output: str(tmp_path / "new"), other: str(tmp_path / "." / "new")}
                result = regionqa(*command.line(given))
                assert result.status == 2 and "name two files" in result.err, command.name


def test_a_model_that_is_named_is_an_input(regionqa: "Command", starter: Any) -> None:
    card = starter.root / "card.toml"
    before = card.read_bytes()
    result = regionqa("caption", "a.jpg", "--out", card, "--overwrite")
    assert result.status == 2 and "is also read (--model)" in result.err
    assert card.read_bytes() == before


# -- earlier results -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(*each, id=f"{each[0].name} {each[1]}".replace(" ", "-"))
        for each in roles(Writes)
        if each[0].roles[each[1]].role in (Writes.results, Writes.plot)
    ],
)
def test_results_are_not_replaced_by_accident(
    regionqa: "Command", tmp_path: Path, command: CliCommand, output: str
) -> None:
    place = tmp_path / "earlier"
    place.write_text("results")
    result = regionqa(*command.line({output: str(place)}))
    assert (result.status, result.out) == (2, ""), result.err
    assert "already exists" in result.err and "--overwrite" in result.err
    assert snapshot(tmp_path) == {"earlier": b"results"}


def test_results_never_replace_an_image(regionqa: "Command", cat: Path, tmp_path: Path) -> None:
    """Images may be named by lines of stdin, or by the data, which are read later."""
    image = tmp_path / "a.png"
    image.write_bytes(cat.read_bytes())
    result = regionqa("caption", "-", "--out", image, "--overwrite", stdin=f"{image}\n")
    assert result.status == 2 and "is an image" in result.err
    assert image.read_bytes() == cat.read_bytes()


def test_any_text_can_be_a_question_or_a_name(regionqa: "Command", tmp_path: Path) -> None:
    """Also text that is no file name, such as one of more than 255 bytes."""
    image, out = tmp_path / "none.jpg", tmp_path / "out.txt"
    for text in ("is it? " * 60, "is it **?", "/**/x", "~none/x"):
        out.write_text("results")
        assert regionqa("ask", image, text, "--out", out, "--overwrite").status == 3, text
    ran = regionqa("caption", image, "--out", tmp_path / ("x" * 300), "--draw", "x" * 300)
    assert ran.status == 2
    assert "a drawing's name must end in one of" in ran.err


def test_a_second_run_on_the_same_results_is_told_to_wait(
    regionqa: "Command", tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with locked(out):
        ran = regionqa("caption", "a.jpg", "--format", "jsonl", "--out", out, "--resume")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        f"regionqa: error: {out}: another run is writing here; wait until it has ended, or name "
        "another\n"
    )
