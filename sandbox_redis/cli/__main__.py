"""``python -m sandbox_redis.cli`` is ``sandbox-redis``."""

import sys

from sandbox_redis.cli import main

sys.exit(main())
