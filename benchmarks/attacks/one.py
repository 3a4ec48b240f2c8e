"""One attack: `python -m benchmarks.attacks.one NAME ADDRESS`, until the process is ended."""

import importlib
import sys


def main() -> None:
    name, address = sys.argv[1:]
    importlib.import_module(f"benchmarks.attacks.{name}").attack(address)


if __name__ == "__main__":
    main()
