"""The machine that measured, in the detail that matters for ratios."""

import os
import platform


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
