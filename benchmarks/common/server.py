"""A server process: `python -m benchmarks.common.server MODULE …` holds `MODULE.serve(…)` open until stdin ends."""

import gc
import importlib
import os
import sys
import threading

from benchmarks.common.pipes import claimed_stdout, send

_STOP_LIMIT_S = 5.0


def main() -> None:
    answers = claimed_stdout()
    module, *arguments = sys.argv[1:]
    with importlib.import_module(module).serve(*arguments) as address:
        gc.collect()
        gc.freeze()  # as `mixserve serve` does; for peers too
        send(answers, address)
        sys.stdin.read()
        # Some servers would wait for ever for streams without a reader.
        limit = threading.Timer(_STOP_LIMIT_S, os._exit, (0,))
        limit.daemon = True
        limit.start()
    os._exit(0)


if __name__ == "__main__":
    main()
