"""Coroutines in a thread of their own: their results, and an end at any moment."""

import asyncio
import gc
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from regionqa.runtime.event_loop import EventLoopThread


@pytest.fixture
def own_garbage() -> None:
    """Let a collection report what the test has left, not what others have."""
    gc.freeze()


async def nothing() -> None:
    pass


async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def forever() -> None:
    await asyncio.Event().wait()


def test_results_and_errors_reach_the_caller() -> None:
    thread = EventLoopThread("test", nothing)
    assert [thread.run(doubled(number)) for number in range(3)] == [0, 2, 4]
    with pytest.raises(TypeError):
        thread.run(doubled(None))  # type: ignore[arg-type]
    thread.close()


@pytest.mark.usefixtures("own_garbage")
def test_all_that_runs_is_cancelled_before_the_owner_releases_what_it_uses() -> None:
    running: list[Future[None]] = []
    ended: list[bool] = []

    async def release() -> None:
        ended.extend(future.cancelled() for future in running)

    thread = EventLoopThread("test", release)
    running += [thread.start(forever()) for _ in range(50)]
    thread.close(seconds=None)
    gc.collect()  # a coroutine that was never awaited would be reported now, and fail the test
    assert ended == [True] * 50
    thread.close()  # a second time is as good as once


@pytest.mark.usefixtures("own_garbage")
def test_work_in_a_pool_of_the_owner_ends_before_the_loop() -> None:
    pool = ThreadPoolExecutor(1)
    begun, let_go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        let_go.wait()

    async def in_pool() -> None:
        await asyncio.get_running_loop().run_in_executor(pool, work)

    async def end_pool() -> None:
        let_go.set()
        pool.shutdown(cancel_futures=True)

    thread = EventLoopThread("test", end_pool)
    futures = [thread.start(in_pool()) for _ in range(3)]
    begun.wait()
    thread.close(seconds=None)
    gc.collect()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()


def test_its_own_coroutine_may_close_it() -> None:
    closed = threading.Event()

    async def released() -> None:
        closed.set()

    thread = EventLoopThread("test", released)

    async def close() -> None:
        thread.close()

    thread.start(close())
    closed.wait()
