"""A child process that answers requests: `python -m benchmarks.common.child MODULE …` holds `MODULE.answering(…)` open.

`answering` yields a function; it is called with each line of stdin, until stdin ends.
"""

import importlib
import json
import os
import sys
import traceback

from benchmarks.common.pipes import claimed_stdout, send


def main() -> None:
    answers = claimed_stdout()
    try:
        module, *arguments = sys.argv[1:]
        with importlib.import_module(module).answering(*arguments) as answer:
            for line in sys.stdin:
                send(answers, answer(**json.loads(line)))
    except Exception as error:
        traceback.print_exc()
        send(answers, {"error": f"{type(error).__name__}: {error}"})
    # Skip the interpreter's shutdown: it would join threads that still wait for batches.
    os._exit(0)


if __name__ == "__main__":
    main()
