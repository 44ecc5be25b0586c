"""An asyncio store with the face of the sync one, so that one test body serves both."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import contextmanager
from typing import Any

from sandbox_redis import AsyncSandboxStore


class BlockingStore:
    """Runs each coroutine of an `AsyncSandboxStore` to its end, all in one event loop."""

    def __init__(self, store: AsyncSandboxStore) -> None:
        self.wrapped = store
        self.runner = asyncio.Runner()
        self.watches: list[BlockingWatch] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.wrapped, name)
        if name == "list":
            return lambda *args, **kwargs: self.iterate(value(*args, **kwargs))
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.runner.run(value(*args, **kwargs))

    def iterate(self, iterator):
        """An asynchronous iterator as a generator; ending it early ends the other one."""
        try:
            while True:
                try:
                    yield self.runner.run(anext(iterator))
                except StopAsyncIteration:
                    return
        finally:
            self.runner.run(iterator.aclose())

    def watch(self, **kwargs):
        """It begins here, as that of a sync store does."""
        watch = self.wrapped.watch(**kwargs)
        return self.followed(self.runner.run(watch.__aenter__()))

    def list_and_watch(self, **kwargs):
        sandboxes, watch = self.runner.run(self.wrapped.list_and_watch(**kwargs))
        return sandboxes, self.followed(watch)

    def followed(self, watch):
        """A watch that is closed with the store, if it is not before."""
        self.watches.append(BlockingWatch(self.runner, watch))
        return self.watches[-1]

    @contextmanager
    def batch(self):
        manager = self.wrapped.batch()
        batch = self.runner.run(manager.__aenter__())
        try:
            yield batch
        except BaseException as error:
            if not self.runner.run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.runner.run(manager.__aexit__(None, None, None))

    def status(self, sandbox_id: str) -> Any:
        storage = self.wrapped.status(sandbox_id)
        outer = self

        class Blocking:
            def get(self, **kwargs):
                return outer.runner.run(storage.get(**kwargs))

            def update(self, fn, **kwargs):
                return outer.runner.run(storage.update(fn, **kwargs))

        return Blocking()

    def close(self) -> None:
        for watch in self.watches:
            watch.close()
        self.runner.run(self.wrapped.aclose())
        self.runner.close()


class BlockingWatch:
    """An `AsyncWatch` with the face of the sync one. While a thread waits for its next event, others may close it."""

    def __init__(self, runner: asyncio.Runner, watch: Any) -> None:
        self.runner = runner
        self.wrapped = watch

    @property
    def cursor(self) -> str | None:
        return self.wrapped.cursor

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.runner.run(anext(self.wrapped))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        loop = self.runner.get_loop()
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(self.wrapped.aclose(), loop).result()
        else:
            self.runner.run(self.wrapped.aclose())

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
