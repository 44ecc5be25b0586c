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
        self.runner.run(self.wrapped.aclose())
        self.runner.close()
