"""``sandbox-redis demo``: the main job of the project, played by real processes and checked to the last event.

::

    director ── starts, kills and ends ──┬── agent node-1/1 ── its sandboxes: real child processes
        │                                ├── agent node-2/1 ── …            (killed with SIGKILL in the middle,
        │                                ├── agent node-2/2                  its successor takes the node over)
        │                                └── controller ── stops and removes the same sandboxes
        └── at the end: what Redis says (audit) against what happened (truth logs) ── checks

Each process writes what really happened to a truth log of its own (``truth.py``), and ``check.py`` holds Redis
against all of them. Every module here uses the store as any node agent would; only ``inside.py`` looks inside it. No
command line here: that is ``sandbox_redis/cli``.
"""
