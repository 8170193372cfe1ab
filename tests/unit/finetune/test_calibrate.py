"""Computation of the [confidence] table from labelled answers."""

from dataclasses import replace

import numpy as np
import pytest

from regionqa.finetune.calibrate import (
    COVERAGE,
    ENOUGH,
    LONGEST,
    TEMPERATURES,
    ScoredAnswers,
    calibrate,
    log_loss,
    threshold_at,
)

RIGHT = np.array([True, True, True, False, False])


def scored(confidence: list[float], lengths: list[int] | None = None) -> ScoredAnswers:
    """Answers of two tokens, the first three of them right."""
    count = len(confidence)
    return ScoredAnswers(
        np.array(confidence), RIGHT, np.array(lengths or [2] * count), np.zeros(count, bool)
    )


def test_log_loss_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.15, 0.15])
    best = log_loss(confidence, np.array([True, True, False, False]))
    assert best == pytest.approx(-(np.log(0.95) + np.log(0.85)) / 2)
    worst = log_loss(confidence, np.array([False, False, True, True]))
    assert worst == pytest.approx(-(np.log(0.05) + np.log(0.15)) / 2)
    assert log_loss(np.array([1.0]), np.array([False])) == pytest.approx(np.log(1000))
    assert log_loss(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_threshold_of_a_coverage() -> None:
    confidence = np.arange(11) / 10
    assert threshold_at(0.8, confidence) == pytest.approx(0.2)
    assert threshold_at(0.5, confidence) == pytest.approx(0.5)
    assert threshold_at(1.0, confidence) == 0


def test_temperature_minimizes_log_loss() -> None:
    answers = {
        0.8: scored([1.0, 1.0, 1.0, 1.0, 1.0]),
        1.0: scored([0.9, 0.8, 0.7, 0.3, 0.2]),
        1.3: scored([0.6, 0.6, 0.6, 0.5, 0.5]),
    }
    lines: list[str] = []
    table = calibrate(answers, lines.append)
    assert table == {"temperature": 1.0, "threshold": 0.26, "longest": LONGEST}
    assert [line.partition(":")[0] for line in lines] == [f"temperature {t}" for t in answers]
    assert lines[1] == (
        "temperature 1.0: log loss 0.299, calibration error 0.220; 0.600 right, 0.750 of those "
        "from 0.260 up"
    ).replace("0.299", f"{log_loss(answers[1.0].confidence, RIGHT):.4f}")
    assert "calibration error 0.400" in lines[0], "a confidence of 1 counts"


def test_long_answers_are_left_out() -> None:
    short = {1.0: scored([0.9, 0.8, 0.7, 0.3, 0.2])}
    more = ScoredAnswers(
        np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.01, 0.02]),
        np.array([*RIGHT, True, True]),
        np.array([LONGEST] * 5 + [LONGEST + 1] * 2),
        np.zeros(7, bool),
    )
    lines: list[str] = []
    assert calibrate({1.0: more}, lines.append) == calibrate(short, lines.append)
    assert lines[0] == lines[1], "nor in what is reported"
    with_all = calibrate({1.0: more}, print, longest=None)
    assert with_all == {"temperature": 1.0, "threshold": pytest.approx(0.019, abs=1e-3)}
    assert calibrate({1.0: more}, print, longest=LONGEST + 1)["longest"] == LONGEST + 1


def test_numbers_have_a_threshold_of_their_own() -> None:
    """As many are held back of them as of other answers, though they are all less probable."""
    others, numbers = np.linspace(0.5, 1.0, 101), np.linspace(0.1, 0.5, 101)
    count = len(others) + len(numbers)
    mixed = ScoredAnswers(
        np.concatenate([others, numbers]),
        np.ones(count, bool),
        np.full(count, 2),
        np.arange(count) >= len(others),
    )
    table = calibrate({1.0: mixed}, print)
    assert table["threshold"] == pytest.approx(0.5 + 0.5 * (1 - COVERAGE))
    assert table["number_threshold"] == pytest.approx(0.1 + 0.4 * (1 - COVERAGE))
    few = replace(mixed, numbers=np.arange(count) >= count - ENOUGH + 1)
    assert "number_threshold" not in calibrate({1.0: few}, print), "it would follow single answers"


def test_model_that_never_stops() -> None:
    lines: list[str] = []
    endless = {t: scored([0.5] * 5, [LONGEST + 1] * 5) for t in TEMPERATURES}
    table = calibrate(endless, lines.append)
    assert table == {"temperature": 1.0, "threshold": 0.0, "longest": LONGEST}
    assert lines == []


def test_temperature_without_short_answers_is_skipped() -> None:
    answers = {
        0.8: scored([0.9] * 5, [LONGEST + 1] * 5),
        1.3: scored([0.9, 0.8, 0.7, 0.3, 0.2123]),
    }
    table = calibrate(answers, print)
    assert table == {"temperature": 1.3, "threshold": 0.265, "longest": LONGEST}, "three decimals"
