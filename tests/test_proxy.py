"""The proxy, as far as soak runs need more of it than the tests of lost replies, which tell it packet by packet."""

from __future__ import annotations

import random

import pytest
import redis
from faults.proxy import Proxy
from redis.backoff import NoBackoff
from redis.retry import Retry


def client_of(proxy: Proxy) -> redis.Redis:
    return redis.Redis.from_url(proxy.url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))


def test_nothing_gets_through_a_black_hole_and_all_does_when_it_is_gone(server, prefix):
    with Proxy(server) as proxy, client_of(proxy) as client:
        assert client.incr(prefix) == 1
        proxy.blackhole = True
        for _ in range(2):  # on the connection from before, and on a new one
            with pytest.raises(redis.TimeoutError):
                client.incr(prefix)
        proxy.blackhole = False
        assert client.incr(prefix) == 2


def test_a_black_hole_takes_the_reply_as_well(server, prefix):
    with Proxy(server) as proxy, client_of(proxy) as client:
        proxy.fault("pass", [0], then=lambda: setattr(proxy, "blackhole", True))
        with pytest.raises(redis.TimeoutError):
            client.incr(prefix)
        proxy.blackhole = False
        assert client.get(prefix) == b"1"


def lost(server, seed: int) -> tuple[list[int], int]:
    """Which of 200 packets met something, and how many the proxy says."""
    with Proxy(server, record=False) as proxy, client_of(proxy) as client:
        proxy.weather(random.Random(seed), {"after": 0.1, "before": 0.1})
        numbers = []
        for number in range(200):
            try:
                client.ping()
            except redis.ConnectionError:
                numbers.append(number)
        assert proxy.packets == []  # a long run keeps nothing
        return numbers, proxy.fired


def test_a_seed_decides_the_weather(server):
    numbers, fired = lost(server, 1)
    assert len(numbers) == fired
    assert 20 < fired < 60
    assert lost(server, 1)[0] == numbers != lost(server, 2)[0]
