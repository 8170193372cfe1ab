"""Output files: written whole, replaced instead of truncated, and locked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regionqa import files
from regionqa.errors import OutputError
from regionqa.files import descriptor, identity, is_special, locked, open_output, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str, *, overwrite: bool = True) -> None:
    with write_whole(path, overwrite=overwrite) as file:
        file.write(text.encode())


# -- whole files -----------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with write_whole(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b", whole")
    assert path.read_text() == "half, whole"
    assert names(tmp_path) == ["a.json"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError), write_whole(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_file_is_not_replaced_without_leave(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(path, "old", overwrite=False)
    with pytest.raises(OutputError, match="already exists; replace it with --overwrite"):
        write(path, "new", overwrite=False)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path / "a.json", "old", overwrite=False)
    with pytest.raises(OutputError):
        write(tmp_path / "a.json", "new", overwrite=False)
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_another_name_of_the_file_keeps_its_content(tmp_path: Path) -> None:
    """Backups are made of hard links."""
    for path in (tmp_path / "a", tmp_path / "b"):
        path.write_text("old")
        path.with_suffix(".bak").hardlink_to(path)
    write(tmp_path / "a", "new")
    with open_output(tmp_path / "b") as file:
        file.write(b"new")
    assert [(tmp_path / name).read_text() for name in ("a", "a.bak", "b", "b.bak")] == [
        "new", "old", "new", "old",
    ]  # fmt: skip


def test_a_file_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a single file that is mounted into a container."""

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    for path in (tmp_path / "a", tmp_path / "b"):
        path.write_text("old, and longer")
    write(tmp_path / "a", "new")
    with open_output(tmp_path / "b") as file:
        file.write(b"new")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["new", "new"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none/a", "there is no folder"),
        ("folder", "is a folder; name a file"),
        ("file/a", "cannot be written: Not a directory; name another file"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"^[^\n]*{reason}[^\n]*$"):
        write(tmp_path / name, "text")
    with pytest.raises(OutputError, match=rf"^[^\n]*{reason}[^\n]*$"):
        open_output(tmp_path / name)


# -- special files ---------------------------------------------------------------------------------


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path: Path) -> None:
    write(Path("/dev/null"), "text")
    open_output(Path("/dev/null")).close()
    assert is_special(Path("/dev/null"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(fifo, "one ")
    with open_output(fifo) as file:
        file.write(b"two")
    assert os.read(reader, 100) == b"one two"
    os.close(reader)
    assert names(tmp_path) == ["fifo"]


def test_an_open_file_is_appended_to(tmp_path: Path) -> None:
    """As in `--out /dev/stdout >> file`."""
    path = tmp_path / "file"
    path.write_text("old, ")
    number = os.open(path, os.O_WRONLY | os.O_APPEND)
    for name in (f"/dev/fd/{number}", f"/proc/self/fd/{number}"):
        write(Path(name), "whole, ")
        with open_output(Path(name)) as file:
            file.write(b"bit by bit, ")
    os.close(number)
    assert path.read_text() == "old, " + 2 * "whole, bit by bit, "


@pytest.mark.parametrize(
    ("path", "number"),
    [("/dev/stdout", 1), ("/dev/../dev/stderr", 2), ("/dev/fd/7", 7), ("/dev/null", None),
     ("stdout", None), ("/dev/fd/x", None)],
)  # fmt: skip
def test_paths_that_name_an_open_file(path: str, number: int | None) -> None:
    assert descriptor(Path(path)) == number


def test_files_have_one_identity_by_every_path(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    one = identity(tmp_path / "a")
    assert one == identity(tmp_path / "link") == identity(tmp_path / "hard") != None  # noqa: E711
    assert identity(tmp_path / "b") != one
    assert identity(tmp_path / "none") is None
    assert identity(Path("/dev/null")) is None


# -- locks -----------------------------------------------------------------------------------------


def test_a_second_run_is_told_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    (tmp_path / "link").symlink_to(path)
    with locked(path):
        for name in ("a.jsonl", "link"):
            with pytest.raises(OutputError, match="another run is writing here; wait until"):
                locked(tmp_path / name).__enter__()
    with locked(path):
        assert not path.exists()
    assert names(tmp_path) == ["link"], "no lock is left"


def test_a_lock_outside_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.jsonl"
    with locked(path), pytest.raises(OutputError, match="another run"):
        locked(path).__enter__()
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_run_does_not_last(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from regionqa.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "a.jsonl"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError):
            locked(path).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(path):
        pass
    assert names(tmp_path) == []


def test_files_are_written_whole_without_fcntl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(files, "fcntl", None)
    for text in ("first", "second"):
        write(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text() == text
    assert names(tmp_path) == ["a.txt"]
