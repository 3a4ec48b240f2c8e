"""`python -m tests.fuzz.guided TARGET INPUTS CORPUS`: fuzz one target, guided by coverage if atheris is there.

The last line of its output is `TARGET`, tab, and a dict of what was counted. A fault ends it with code 1 and a message;
the input lies in the folder CORPUS-faults.
"""

import faulthandler
import json
import os
import random
import sys
import time
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

_PREFIXES = ["mixserve", "mixserve_client"]
_LONGEST_S = 20  # a call that takes longer hangs
_WATCHED = 256  # inputs
_MOST_BYTES = 8192  # of a guided input; longer ones are made by mutation


def main() -> None:
    name, inputs, corpus = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with nullcontext() if atheris is None else atheris.instrument_imports(include=_PREFIXES):
        # What a decoder does not need takes seconds to import.
        if name.startswith(("client: ", "server: ")):
            from tests.fuzz.wire_targets import WIRE as TARGETS
        else:
            from tests.fuzz.file_targets import FILES as TARGETS
    from tests.fuzz.mutations import mutate
    from tests.fuzz.target import Checked, Fault

    target = next(one for one in TARGETS if one.name == name)
    checked, seeds = Checked(target), target.seeds()
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    choice, began = random.Random(name), time.monotonic()

    def call(data: bytes) -> None:
        if checked.inputs % _WATCHED == 0:  # the process ends with the stacks of all threads if these take so long
            faulthandler.dump_traceback_later(_LONGEST_S * 3, exit=True)
        try:
            checked(data)
        except Fault as fault:
            folder = corpus.with_name(f"{corpus.name}-faults")
            folder.mkdir(exist_ok=True)
            (folder / sha256(data).hexdigest()[:16]).write_bytes(data)
            print(f"{name}: {fault}", flush=True)
            sys.stdout.flush()
            os._exit(1)

    def report() -> None:
        counted = {
            "inputs": checked.inputs,
            "refused": checked.refused,
            "seconds": time.monotonic() - began,
            "slowest_ms": 1e3 * checked.slowest_s,
            "mib": checked.most_bytes / (1 << 20),
            "guided": atheris is not None,
        }
        print(f"{name}\t{json.dumps(counted)}", flush=True)

    # Long inputs, and those of other places than coverage leads to, come by mutation: a fifth of all, or all.
    for _ in range(inputs if atheris is None else inputs // 5):
        call(mutate(choice, seeds, target.largest))
    if atheris is None:
        report()
        return

    def guided(data: bytes) -> None:
        call(data)
        if checked.inputs >= inputs:
            report()
            os._exit(0)

    options = [
        f"-max_len={_MOST_BYTES}",
        f"-timeout={_LONGEST_S}",
        "-rss_limit_mb=0",
        "-verbosity=0",
        "-detect_leaks=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], guided)
    atheris.Fuzz()


main()
