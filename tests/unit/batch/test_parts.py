"""Parts: where they end, and how they are named."""

from hypothesis import given
from hypothesis import strategies as st

from regionqa.batch.parts import BatchPart, RequestLine, StoredRows, make_parts


def lines(*names: str) -> list[RequestLine]:
    return [RequestLine(f"line {n}", name, "base") for n, name in enumerate(names)]


def keys(names: list[str], settings: str = "s", size: int = 8) -> list[str]:
    return [part.key for part in make_parts(lines(*names), settings, size)]


@given(st.lists(st.text("abc", max_size=2), max_size=60), st.integers(1, 9))
def test_parts_hold_every_request_once_in_order(names: list[str], size: int) -> None:
    parts = list(make_parts(lines(*names), "s", size))
    assert [text for part in parts for _, text, _ in part.lines] == names
    assert len({part.key for part in parts}) == len(parts)
    assert all(part.count is not None and 0 < part.count <= 2 * size for part in parts)


def test_added_lines_change_the_parts_beside_them() -> None:
    names = [f"{n:05}.jpg" for n in range(4000)]
    before = set(keys(names, size=32))
    assert 80 < len(before) < 170  # 125 on average
    for place in (0, 1777, 4000):
        after = keys([*names[:place], "new.jpg", *names[place:]], size=32)
        assert len(set(after) - before) <= 12


def test_keys_depend_on_requests_and_settings_only() -> None:
    names = ["a", "b", "c"]
    moved = [RequestLine("elsewhere", name, "other base") for name in names]
    assert [part.key for part in make_parts(moved, "s", 8)] == keys(names)
    assert keys(names, "other") != keys(names) != keys(["a", "b", "d"])


def test_equal_parts_have_different_keys() -> None:
    names = ["same.jpg"] * 10
    found = keys(names, size=1)
    assert len(set(found)) == len(found)
    assert keys(names, size=1) == found


def test_rows_of_files_are_parts() -> None:
    rows = [StoredRows("a.parquet", "1", 0, 5, 5), StoredRows("a.parquet", "1", 5, 7, 2)]
    changed = [StoredRows("a.parquet", "2", 0, 5, 5), rows[1]]
    first, second = make_parts(rows, "s", 8)
    assert (first.count, second.count, first.file) == (5, 2, "a.parquet")
    assert [part.key for part in make_parts(changed, "s", 8)][1:] != [first.key]
    assert next(make_parts(changed, "s", 8)).key != first.key


def test_parts_survive_as_text() -> None:
    part = BatchPart("k", 2, (("line 1", "stray \udcff", None), ("line 2", "b", "why")), "base")
    assert BatchPart.from_json(part.as_json()) == part
    assert part.as_json().isascii()


def test_requests_of_other_folders_are_other_parts() -> None:
    entries = [RequestLine("1", "a", "x"), RequestLine("1", "a", "y")]
    assert [part.base for part in make_parts(entries, "s", 8)] == ["x", "y"]
