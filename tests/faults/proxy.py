"""The proxy that loses what it is told to lose; soak runs have it as well."""

from sandbox_redis.soak.proxy import CUTS, HANDSHAKE, How, Proxy

__all__ = ["CUTS", "HANDSHAKE", "How", "Proxy"]
