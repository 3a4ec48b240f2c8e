"""The section of docs/deploy.md about Compose: its commands, run literally but for the address."""

import re
import subprocess
import sys
from pathlib import Path

from tests.compose.engine import Engine

SECTION = "Compose"
DOCS = Path(__file__).parents[2] / "docs"


class Page:
    """Runs each block in the engine's folder when it is asked for, and knows which were not."""

    def __init__(self, engine: Engine):
        self._engine = engine
        text = (DOCS / "deploy.md").read_text().partition(f"\n## {SECTION}\n")[2].partition("\n## ")[0]
        self._left = list(re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL))

    def run(self, word: str) -> str:
        """What the first block that has this word in it, and was not run yet, prints."""
        language, text = next(block for block in self._left if word in block[1])
        self._left.remove((language, text))
        here = self._here(text)
        if language == "sh":
            print("".join(f"  {line}\n" for line in here.splitlines()), end="", flush=True)
            return self._engine.run(here)
        done = subprocess.run(
            [sys.executable, "-c", here], cwd=self._engine.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check_end(self) -> None:
        """All blocks were run."""
        assert self._left == []

    def _here(self, text: str) -> str:
        """With an address of the test's own in place of one that the machine may use."""
        address = self._engine.address
        return text.replace("localhost:", f"{address}:").replace("secrets.sh\n", f"secrets.sh IP:{address}\n")
