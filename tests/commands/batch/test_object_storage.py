"""`regionqa batch` on S3 that answers a tenth of its requests with 500 or 503."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.batch.commands import stay_in_this_process
from helpers.batch.storage_server import FaultyProxy, object_storage, storage_program
from regionqa.batch import storage
from regionqa.batch.storage import Location

if TYPE_CHECKING:
    from conftest import Command

fs = pytest.importorskip("pyarrow.fs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(storage_program() is None, reason="needs moto_server"),
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """S3 as the environment describes it, with a bucket `photos`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(storage, "SDK_ATTEMPTS", 1)  # so that our own attempts are tested too
    program = storage_program()
    assert program is not None
    with object_storage(program, share=0.1) as (address, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = fs.S3FileSystem(
            endpoint_override=address, region="us-east-1", allow_bucket_creation=True
        )
        storage.retried(lambda: client.create_dir("photos"))
        yield proxy
    storage._filesystem.cache_clear()


def test_s3_that_fails_now_and_then(
    s3: FaultyProxy,
    regionqa: "Command",
    colours: Path,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stay_in_this_process(monkeypatch)
    names = sorted(path.name for path in colours.iterdir())
    for number in range(20):
        for name in names:
            place = Location(f"s3://photos/in/a b/{number:02}%20+{name}".replace("%", "%25"))
            place.write((colours / name).read_bytes())
    words = ("--model", toy, "--format", "jsonl", "--part-size", "10")
    ran = regionqa("batch", "s3://photos/in", "s3://photos/out", *words)
    assert (ran.status, ran.err.count("error:")) == (0, 0)
    parts = [file for file in Location("s3://photos/out").files() if "part-" in file.location.name]
    rows = [json.loads(line) for file in parts for line in file.location.lines()]
    assert len(rows) == len({row["image"] for row in rows}) == 20 * len(names)
    for row in rows:
        colour = {"lime": "green"}.get(word := row["image"].rpartition("+")[2][:-4], word)
        assert row["answer"] == f"{colour}: all of it"
    assert min(s3.faults.values()) > 0 < s3.passed
    asked = s3.passed
    assert regionqa("batch", "s3://photos/in", "s3://photos/out", *words).status == 0
    assert s3.passed - asked < 3 * 20  # images are not fetched again
    lines = "".join(json.dumps({"image": f"in/a b/00%20+{name}"}) + "\n" for name in names)
    Location("s3://photos/requests.jsonl").write(f'{lines}{{"image": "in/none.png"}}\n'.encode())
    ran = regionqa("batch", "s3://photos/*.jsonl", "s3://photos/two", *words)
    assert (ran.status, "1 error: no such file" in ran.err) == (3, True)
