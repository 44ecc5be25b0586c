"""The soak: many processes write to one store while its server is broken again and again, and at the end it is decided
from their logs whether what they were told was possible. It is to prove the promises of the README, not to show them.

``run.py`` directs it, ``checker.py`` decides. It knows nothing of the demo.
"""
