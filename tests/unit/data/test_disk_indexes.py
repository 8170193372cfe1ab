"""Indexes on disk behave as the containers that they stand for."""

from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.documents.training_data import good, save
from regionqa.data.streams.disk_index import DiskIndex, RecordsByImage
from regionqa.data.streams.training import LinesStream, UsableRecords

TEXT = st.text(st.characters(codec="utf-8"), max_size=3) | st.just("a\udcff")
STEPS = st.lists(st.tuples(st.booleans(), TEXT, st.integers(0, 2**60)), max_size=30)


@given(STEPS)
def test_numbers_by_text_are_a_dictionary(steps: list[tuple[bool, str, int]]) -> None:
    expected: dict[str, int] = {}
    with closing(DiskIndex()) as index:
        for sets, key, value in steps:
            if sets:
                index[key] = expected[key] = value
            else:
                index.discard(key)
                expected.pop(key, None)
            assert len(index) == len(expected)
        assert all(index.get(key) == expected.get(key) for _, key, _ in steps)


def test_records_come_by_image_in_order_of_appearance(tmp_path: Path) -> None:
    for name in "bac":
        Image.new("RGB", (100, 100)).save(tmp_path / f"{name}.png")
    order = "bbabcab"
    documents = [good(image=f"{name}.png", kind=str(n)) for n, name in enumerate(order)]
    path = save(tmp_path / "mine.jsonl", *documents, good(image="gone.png"))
    stream = LinesStream(path, None)
    with closing(RecordsByImage(stream)) as images:
        for key, record in UsableRecords(stream).keyed():
            images.add(key, record.image)
        found = [[record.kind for record in records] for records in images]
        assert (found, images.images) == ([["0", "1", "3", "6"], ["2", "5"], ["4"]], 3)
