"""`regionqa chat`: conversations from pipes, files and a terminal."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command

from regionqa.backends.bundle import BundleModel
from regionqa.bundles.store import Bundle
from regionqa.cli.chat import converse
from regionqa.engine import Engine
from regionqa.options import GenerationOptions
from regionqa.pipeline.chat import Chat, ChatSettings, SavedConversation
from regionqa.requests import Answer, HistoryTurn, Request

pytestmark = pytest.mark.usefixtures("shared_engine")

REGIONQA = (sys.executable, "-m", "regionqa")
HEAD, EYE = "120,20,345,240", "180,90,230,130"


def asked(regionqa: Command, cat: Path, question: str, *boxes: str) -> str:
    """The answer of `ask`."""
    named = [word for box in boxes for word in ("-b", box)]
    return regionqa("ask", cat, *named, question).out


# -- a user's sentences ----------------------------------------------------------------------------


def test_questions_from_a_pipe(regionqa: Command, cat: Path) -> None:
    ran = regionqa("chat", cat, stdin=f"/box {HEAD}\nwhat is this?\n")
    assert ran.status == 0
    assert ran.out == asked(regionqa, cat, "what is this?", HEAD)
    assert f"<region1> {HEAD}" in ran.err


def test_boxes_of_the_command_line_are_the_first_regions(regionqa: Command, cat: Path) -> None:
    ran = regionqa("chat", cat, "-b", HEAD, stdin=f"/box {EYE}\nis <region2> on <region1>?\n")
    assert ran.out == asked(regionqa, cat, "is <region2> on <region1>?", HEAD, EYE)


def test_box_units(regionqa: Command, cat: Path) -> None:
    ran = regionqa(
        "chat", cat, "--box-units", "permille", "--box-format", "xywh",
        stdin="/box 100 200 300 400\n",
    )  # fmt: skip
    assert "<region1> 45.1,60,180.4,180" in ran.err


def test_turns_from_a_file(regionqa: Command, cat: Path, tmp_path: Path) -> None:
    script = tmp_path / "turns.txt"
    script.write_text(f"/box {HEAD}\nwhat is this?\n\nis it red?\n/quit\nnever asked\n")
    ran = regionqa("chat", cat, "--turns", script, stdin="nor this")
    assert ran.status == 0
    assert len(ran.lines) == 2
    assert ran.out == regionqa("chat", cat, "--turns", "-", stdin=script.read_text()).out


def test_notes_go_to_stderr(regionqa: Command, cat: Path) -> None:
    ran = regionqa("chat", cat, stdin=f"/help\n/boxes\n/box {HEAD}\n/boxes\n/undo\n/boxes\n/new\n")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.count("no regions; /box adds one") == 2
    assert ran.err.count(f"<region1> {HEAD}") == 2
    assert "/save FILE" in ran.err


def test_quiet_prints_answers_and_errors_only(regionqa: Command, cat: Path) -> None:
    ran = regionqa("chat", cat, "-q", stdin=f"/box {HEAD}\nwhat is this?\nand now?\n/nonsense\n")
    assert len(ran.lines) == 2
    assert ran.err == "regionqa: /nonsense: no such command; /help lists them\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/box 1,2,3", "3 values found"),
        ("/box 900,900,950,950", "lies outside the image"),
        ("what is <region1>?", "but 0 regions were given"),
        ("/undo", "there is nothing to undo"),
        ("/image", "name an image"),
        ("/image gone.jpg", "gone.jpg: no such file"),
        ("/save", "name a file"),
        ("/save a.jsonl", "there is no answer to save yet"),
        ("/dance", "/dance: no such command"),
        ("is it \udcff?", "not valid text"),
    ],
)
def test_bad_line_is_reported_and_skipped(
    regionqa: Command, cat: Path, line: str, reason: str
) -> None:
    ran = regionqa("chat", cat, "-q", stdin=f"{line}\ndescribe this picture.\n")
    assert ran.status == 3
    assert reason in ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.out == asked(regionqa, cat, "describe this picture.")


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["gone.jpg"], 1, "gone.jpg: no such file"),
        (["{cat}", "--turns", "gone.txt"], 2, "--turns: gone.txt cannot be read"),
        (["{cat}", "--box", "1,2"], 2, "--box: box '1,2'"),
        (["{cat}", "--guess", "--unsure-below", "0.5"], 2, "drop one"),
        (["{cat}", "--model", "gone"], 1, "no such model"),
    ],
)
def test_invalid_arguments_are_refused_before_loading(
    regionqa: Command, cat: Path, words: Sequence[str], status: int, reason: str
) -> None:
    ran = regionqa("chat", *(word.format(cat=cat) for word in words), stdin="what is this?\n")
    assert (ran.status, ran.out) == (status, "")
    assert reason in ran.err


def test_saved_conversation_is_training_data(
    regionqa: Command, cat: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "said.jsonl"
    lines = [
        f"/box {HEAD}", "what is this?", f"/box {EYE}", "is <region2> on <region1>?",
        f"/save {file}", f"/image {photos / 'cup.jpg'}", "describe this picture.", f"/save {file}",
    ]  # fmt: skip
    ran = regionqa("chat", cat, stdin="\n".join(lines))
    assert ran.status == 0
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["regions"] == [list(map(int, box.split(","))) for box in (HEAD, EYE)]
    turns = [turn["value"] for turn in first["conversations"]]
    assert turns[::2] == ["<region1>what is this?", "is <region2> on <region1>?"]
    assert [*turns[1::2], second["conversations"][1]["value"]] == ran.lines
    assert second["image"] == "photos/cup.jpg"
    checked = regionqa("data", "check", file)
    assert checked.status == 0
    assert re.search(r"records +2\n", checked.out)


def test_save_does_not_overwrite_a_file(regionqa: Command, cat: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("precious")
    lines = f"describe this picture.\n/save {file}\n/save {tmp_path / 'gone' / 'a.jsonl'}\n"
    ran = regionqa("chat", cat, "-q", stdin=lines)
    assert ran.status == 3
    assert file.read_text() == "precious"
    assert "already exists; name another file" in ran.err.splitlines()[0]
    assert "a.jsonl: there is no folder" in ran.err.splitlines()[1]


# -- models that know conversations, and models that do not ----------------------------------------


class Recorder:
    """An engine with numbered answers that records requests and messages."""

    def __init__(self, bundle: Bundle) -> None:
        self.info = BundleModel(bundle).info
        self.requests: list[Request] = []
        self.lines: list[str] = []
        self.answers: list[str] = []
        self.kept: dict[Path, Sequence[SavedConversation]] = {}

    def answer(
        self, requests: Sequence[Request], options: GenerationOptions, **_: object
    ) -> Iterator[Answer]:
        self.requests += requests
        yield Answer(requests[0], f"answer {len(self.requests)}")

    def part(self, text: str) -> None:
        self.lines.append(text)

    note = warn = error = part

    def write(self, path: Path, kept: Sequence[SavedConversation]) -> None:
        self.kept[path] = kept


Recorded = tuple[Chat, Recorder]


def recorded(bundle: Bundle, cat: Path, **rules: str) -> Recorded:
    changed = replace(bundle.card, prompt=replace(bundle.card.prompt, **rules))
    recorder = Recorder(Bundle(changed, bundle.root))
    listener = type("Ears", (), {})()
    for name in ("part", "note", "warn", "error"):
        setattr(listener, name, recorder.part)
    listener.answer = recorder.answers.append
    chat = Chat(recorder, ChatSettings(), listener, recorder.write)  # type: ignore[arg-type]
    chat.open(str(cat))
    return chat, recorder


@pytest.fixture
def talking(starter: Bundle, cat: Path) -> Recorded:
    return recorded(starter, cat, turn="{question}<answer>", introduction="of {regions}: ")


@pytest.fixture
def single(starter: Bundle, cat: Path) -> Recorded:
    return recorded(starter, cat)


def follow(chat: Chat, *lines: str) -> None:
    for line in lines:
        assert chat.follow(line)


def test_request_has_the_history(talking: Recorded) -> None:
    chat, recorder = talking
    follow(chat, f"/box {HEAD}", "what is this?", f"/box {EYE}", "and this?", "why?")
    last = recorder.requests[-1]
    assert last.history == (
        HistoryTurn("what is this?", "answer 1", 1),
        HistoryTurn("and this?", "answer 2", 2),
    )
    assert (last.question, len(last.regions)) == ("why?", 2)
    assert recorder.answers == ["answer 1", "answer 2", "answer 3"]


def test_undo_removes_the_last_turn_or_region(talking: Recorded) -> None:
    chat, recorder = talking
    follow(chat, f"/box {HEAD}", "what is this?", f"/box {EYE}", "/undo", "/undo", "and now?")
    assert recorder.requests[-1].history == ()
    assert len(recorder.requests[-1].regions) == 1
    follow(chat, "/undo", "/undo", "/undo")
    assert chat.failed == 1


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a", "x" * 300, "a\0b", "/"])
def test_a_name_that_no_file_can_have_fails_its_line_only(talking: Recorded, name: str) -> None:
    chat, recorder = talking
    follow(chat, "what is this?", f"/image {name}", f"/image {name}", "why?")
    assert chat.failed == 2
    assert recorder.answers == ["answer 1", "answer 2"]
    follow(chat, f"/save {name}")


def test_image_starts_a_new_conversation(talking: Recorded, photos: Path) -> None:
    chat, recorder = talking
    follow(chat, f"/box {HEAD}", "what is this?", f"/image {photos / 'cup.jpg'}", "and this?")
    last = recorder.requests[-1]
    assert (last.history, last.regions, last.image) == ((), (), str(photos / "cup.jpg"))
    follow(chat, "/new", "and this?", "/save x.jsonl")
    assert recorder.requests[-1].history == ()
    (kept,) = recorder.kept.values()
    assert [len(talk.turns) for talk in kept] == [1, 1, 1]


def test_unreadable_image_keeps_the_conversation(talking: Recorded, cat: Path) -> None:
    chat, recorder = talking
    follow(chat, "what is this?", "/image gone.jpg", "and now?")
    assert recorder.requests[-1].image == str(cat)
    assert len(recorder.requests[-1].history) == 1


def test_saved_questions_name_introduced_regions(talking: Recorded) -> None:
    chat, recorder = talking
    follow(chat, f"/box {HEAD}", "what is this?", f"/box {EYE}", "is it on <region1>?", "/save x")
    ((kept,),) = recorder.kept.values()
    assert [question for question, _ in kept.turns] == [
        "of <region1>: what is this?",
        "of <region2>: is it on <region1>?",
    ]


def test_single_turn_model_gets_the_current_regions(single: Recorded) -> None:
    chat, recorder = single
    follow(chat, f"/box {HEAD}", "what is this?", "is it red?", f"/box {EYE}", "and this?")
    follow(chat, "is <region2> on <region1>?", "what is <region2>?", "is it red?")
    boxes = [[str(region.box) for region in request.regions] for request in recorder.requests]
    assert boxes == [[HEAD], [HEAD], [EYE], [HEAD, EYE], [EYE], [EYE]]
    assert [request.question for request in recorder.requests[3:5]] == [
        "is <region2> on <region1>?",
        "what is <region1>?",
    ]
    assert all(request.history == () for request in recorder.requests)
    refusals = [line for line in recorder.lines if "one question at a time" in line]
    assert len(refusals) == 1


def test_reference_to_missing_region_is_refused(single: Recorded, engine: Engine) -> None:
    chat, recorder = single
    recorder.answer = engine.answer  # type: ignore[method-assign, assignment]
    follow(chat, f"/box {HEAD}", "is <region2> on <region1>?")
    assert recorder.answers == []
    assert "names <region2>, but 1 region was given" in recorder.lines[-1]


# -- a terminal ------------------------------------------------------------------------------------


class Terminal:
    """A session at a pseudo-terminal."""

    def __init__(self, control: int, process: "subprocess.Popen[bytes]") -> None:
        self.control = control
        self.process = process
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.control, keys.encode())

    def interrupt_until_shown(self, pattern: str) -> None:
        """Press Ctrl-C until a pattern is shown.

        Python may hear of a Ctrl-C with the next key only, so a key that does nothing at an empty
        prompt follows one that brought nothing.
        """
        for _ in range(10):
            for key in ("\x03", "\x01"):  # Ctrl-C; Ctrl-A, to the beginning of the line
                self.type(key)
                if self.read_until(pattern, 3) is not None:
                    return
        pytest.fail(f"{pattern!r} is not in {self.shown!r}")

    def expect(self, pattern: str, seconds: float = 900) -> str:
        """Read until the pattern is shown; what came up to its end."""
        text = self.read_until(pattern, seconds)
        assert text is not None, f"{pattern!r} is not in {self.shown!r}"
        return text

    def read_until(self, pattern: str, seconds: float) -> str | None:
        """What comes up to the pattern's end; None where it does not come in time."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.control], [], [], left)[0]:
                return None
            try:
                self.shown += os.read(self.control, 4096).decode()
            except OSError:  # Linux's way to say that the other end is closed
                pytest.fail(f"ended with {self.shown!r}")
        text, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return text


@contextmanager
def at_a_terminal(
    *words: object, program: Sequence[str] = REGIONQA, **streams: object
) -> Iterator[Terminal]:
    control, device = pty.openpty()
    command = [*program, *map(str, words)]
    both: dict[str, object] = {"stdin": device, "stdout": device, "stderr": device, **streams}
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: take_terminal(device),
        **both,  # type: ignore[call-overload]
    )
    os.close(device)
    try:
        yield Terminal(control, process)
    finally:
        process.kill()
        process.wait()
        os.close(control)


def take_terminal(device: int) -> None:
    """Make it the terminal of this process, which hears Ctrl-C even if the tests do not: a shell
    that starts them in the background has them ignore it, and so would all that they start."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(device, termios.TIOCSCTTY, 0)


def test_interactive_session(cat: Path) -> None:
    with at_a_terminal("chat", cat) as terminal:
        terminal.expect(r"chelsea\.png, 451 x 300 pixels\r\n")
        terminal.expect(r"starter is ready; /help lists the commands\r\n> ")
        terminal.type(f"/box {HEAD}\n")
        terminal.expect(rf"<region1> {HEAD}\r\n> ")
        terminal.type("what is that\x1b[D\x7fis\x04\x04\n")  # edited: a letter is taken out
        shown = terminal.expect(r"\n[^>\n]+\.\r\n> ")
        assert "Traceback" not in shown
        terminal.interrupt_until_shown(r"\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(900) == 0


def test_prompt_is_not_written_to_redirected_stdout(forked: str, cat: Path, tmp_path: Path) -> None:
    answers, program = tmp_path / "answers.txt", shlex.split(forked)
    with (
        answers.open("wb") as file,
        at_a_terminal("chat", cat, program=program, stdout=file) as terminal,
    ):
        terminal.expect("> ")
        terminal.type("describe this picture.\n")
        terminal.expect("> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(900) == 0
    assert answers.read_text().count("\n") == 1
    assert "> " not in answers.read_text()


class Stopped:
    """A conversation in which the first answer is stopped by Ctrl-C."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def follow(self, line: str) -> bool:
        self.lines.append(line)
        if len(self.lines) == 1:
            raise KeyboardInterrupt
        return True


def test_ctrl_c_stops_an_answer_or_a_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_hand, script = Stopped(), Stopped()
    converse(by_hand, iter(["what is this?", "and now?"]), interactive=True)  # type: ignore[arg-type]
    assert by_hand.lines == ["what is this?", "and now?"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "\ninterrupted; the question is dropped\n")
    with pytest.raises(KeyboardInterrupt):
        converse(script, iter(["what is this?", "and now?"]), interactive=False)  # type: ignore[arg-type]
