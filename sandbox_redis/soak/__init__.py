"""Real deployments on this host, and the faults that they meet: what a store must come through, run by the hour.

::

    node.py        one server process and questions to it; what all deployments have in common
    deployment.py  a server with its replicas, and the same watched by sentinels
    clusters.py    a cluster
    faults.py      what can happen to them
    proxy.py       what can happen to a connection

For soak runs and tests. The store knows nothing of it. Servers listen on 127.0.0.1 only, keep their data in temporary
directories, and end when we do, see ``sandbox_redis.server``.
"""
