"""What the figures were taken on, as far as it matters for ratios."""

import os
import platform


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
