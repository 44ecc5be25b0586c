"""The full-screen view of a fleet, ``sandbox-redis top``. `Feed` keeps a `Fleet` and its `Pulse` current, a `View` is
what is seen of them at one moment, and `Top` shows one after the other.

Only ``app.py``, ``main.py``, ``screens.py`` and ``rows.py`` know of the terminal library; the rest is plain data.
Nothing outside this package and its command imports it.
"""
