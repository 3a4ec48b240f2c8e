"""How many examples property tests try: fewer in the profile `fast`, the default, all in `thorough`, which CI runs."""

import os

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fast")

settings.register_profile("fast", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile(PROFILE)


def examples(thorough: int) -> int:
    """The number of examples of a test that tries `thorough` examples in the profile of that name."""
    return thorough if PROFILE == "thorough" else max(5, thorough // 4)
