"""`client.batches` over loopback TCP beside a raw grpcio stream of the same bytes; servers in processes apart."""

import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np

from measure import in_turn, machine, ratio, report
from mixserve_client import MixClient

SIZES = (8, 32, 256, 1024)
ROW = 2048  # int32, 8 KiB a record
SOURCES, RECORDS, WEIGHTS = 4, 4096, (0.1, 0.2, 0.3, 0.4)
ROUNDS = 9
_RAW_METHOD = "/raw/Stream"


def main() -> None:
    if sys.argv[1:2] == ["--raw-server"]:
        serve_raw()
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = start(stack, "-m", "mixserve", "serve", str(write_mixture(folder)))
        raw = start(stack, __file__, "--raw-server")
        client = stack.enter_context(MixClient.connect(ours))
        channel = stack.enter_context(grpc.insecure_channel(raw, options=[("grpc.max_receive_message_length", -1)]))
        stream = channel.unary_stream(_RAW_METHOD)
        rows = [row(client, stream, size) for size in SIZES]
    notes = [
        f"{SOURCES} sources of {RECORDS} records of {ROW * 4} bytes; {ROUNDS} rounds in turn, each with a new key.",
        "The raw stream sends one and the same message of a batch's size again and again: no plan, no gather.",
        "Medians; GB/s of array data; ratio of throughputs, ours / raw, with the middle half of its spread.",
        machine(),
    ]
    report("remote", "Batches over loopback TCP", rows, notes)


def row(client: MixClient, stream, size: int) -> dict[str, object]:
    batch_bytes = size * ROW * 4
    count = max(10, min(400, (128 << 20) // batch_bytes))

    def ours(number: int) -> None:
        with client.batches(size, key=number * 10_000 + size, stop=size * count) as batches:
            assert sum(len(batch["tokens"]) for batch in batches) == size * count

    def raw(_: int) -> None:
        assert sum(len(frame) for frame in stream(f"{batch_bytes} {count}".encode())) == batch_bytes * count

    taken = in_turn({"ours": ours, "raw": raw}, ROUNDS)
    speeds = {name: batch_bytes * count / statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "batch": size,
        "MB": f"{batch_bytes / 1e6:.2f}",
        "mixserve batches/s": f"{speeds['ours'] / batch_bytes:.0f}",
        "mixserve GB/s": f"{speeds['ours'] / 1e9:.3f}",
        "raw stream GB/s": f"{speeds['raw'] / 1e9:.3f}",
        "ours / raw": ratio(taken["raw"], taken["ours"]),
    }


def write_mixture(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["mixtures:", "  train:", "    sources:"]
    for index, weight in enumerate(WEIGHTS[:SOURCES]):
        (folder / f"{index}").mkdir()
        np.save(folder / f"{index}" / "tokens.npy", rng.integers(0, 1 << 30, (RECORDS, ROW), np.int32))
        lines.append(f"      s{index}: {{kind: arrays, path: '{index}', weight: {weight}}}")
    config = folder / "mixture.yaml"
    config.write_text("\n".join([*lines, "server: {port: 0}", ""]))
    return config


def start(stack: ExitStack, *arguments: str) -> str:
    """Start a server process that ends with `stack`; its address, once it serves."""
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stderr is not None
    for line in process.stderr:
        if "serving on " in line:
            # Whoever logs must be read, or it blocks in the end.
            stack.enter_context(ThreadPoolExecutor(1)).submit(process.stderr.read)
            stack.callback(process.kill)
            return line.split()[-1]
    raise RuntimeError(f"the server {arguments} ended with {process.wait()}")


def serve_raw() -> None:
    def stream(request: bytes, _context: grpc.ServicerContext):
        batch_bytes, count = map(int, request.split())
        frame = bytes(batch_bytes)
        for _ in range(count):
            yield frame

    handler = grpc.method_handlers_generic_handler("raw", {"Stream": grpc.unary_stream_rpc_method_handler(stream)})
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
