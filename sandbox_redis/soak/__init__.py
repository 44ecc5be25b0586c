"""Real deployments on this host, the faults that they meet, and many processes that write to one store meanwhile: what
a store must come through, run by the hour. At the end it is decided from logs whether all that anybody was told was
possible.

::

    node.py        one server process and questions to it; what all deployments have in common
    deployment.py  a server with its replicas, and the same watched by sentinels
    clusters.py    a cluster
    faults.py      what can happen to them
    proxy.py       what can happen to a connection
    agent.py       the processes that write; observer.py those that watch
    history.py     what each of them was told; log.py how that is written down
    checker.py     whether that was possible
    round.py       all of it together: starts it, causes faults, has it checked
    run.py         a soak, which is many rounds

For soak runs and tests. The store knows nothing of it. Servers listen on 127.0.0.1 only, keep their data in temporary
directories, and end when we do, see ``sandbox_redis.server``.
"""
