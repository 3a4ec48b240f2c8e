"""A process that did not stop its server still ends, even with open clients."""

import subprocess
import sys
import time

PROGRAM = """
import threading
import grpc, numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client import MixClient

config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), sampling="epoch")
server = serve({"train": MixDataSourcesNode(config, [ArraySource({"x": np.zeros((1000, 512), np.int32)})])})
channel, never = grpc.insecure_channel(server.address), threading.Event()

def requests():
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    never.wait()

streams = []
for _ in range(3):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests())
    streams += [watch, reflected]
    next(watch)
next(streams[1])
client = MixClient.connect(server.address)
batches = client.batches(100, 7)
next(batches)
session = client.session("a")
print("the end", flush=True)
"""


def test_a_process_that_falls_off_its_end_with_streams_open_ends():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "the end\n"
            begun = time.monotonic()
            _, errors = process.communicate(timeout=20)
            assert time.monotonic() - begun < 10
            assert process.returncode == 0, errors
        finally:
            process.kill()
