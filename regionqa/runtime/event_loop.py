"""An asyncio event loop in a thread of its own, for callers that are not asynchronous."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
SECONDS_TO_CLOSE = 5.0


class EventLoopThread:
    """Runs coroutines beside its caller, who may have an event loop too.

    It must be closed, and keeps no reference to its owner, so that `weakref.finalize` can do so.
    """

    def __init__(self, name: str, on_close: Callable[[], Awaitable[None]]) -> None:
        """Start the thread.

        Args:
            name: The thread's.
            on_close: Releases what the coroutines use, after all of them have ended.
        """
        self._on_close = on_close
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end; it is cancelled if this call is interrupted."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, seconds: float | None = SECONDS_TO_CLOSE) -> None:
        """Cancel what runs, wait for its end, and end the thread, which may be the one that calls.

        seconds: how long to wait for the thread; None: until it ends.
        """
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            await self._on_close()
            await self._loop.shutdown_asyncgens()
        finally:
            self._loop.stop()
