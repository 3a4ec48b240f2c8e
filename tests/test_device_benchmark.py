"""The benchmark of devices on the CPU device: it runs, compares bytes, and sees bytes that differ."""

import json
import sys

import pytest

from benchmarks.device import __main__ as command
from benchmarks.device import equality
from mixserve.mixture import device


def test_bytes_on_host_and_device_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["device", "--parts", "equality", "--positions", "3000", "--results", str(tmp_path)]
    )
    command.main()
    found = json.loads((tmp_path / "device.json").read_text())
    rows = found["equality"]["rows"]
    assert [(row["mode"], row["positions"], row["different"]) for row in rows] == [
        ("categorical", "3,000", 0),
        ("epoch", "3,000", 0),
    ]
    assert "| epoch | 3,000 | 0 |" in (tmp_path / "device.md").read_text()
    assert "| epoch | 3,000 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_bytes_that_differ_are_counted(monkeypatch, name):
    upload = device.upload

    def upload_with_a_fault(sources, fields):
        buffers = upload(sources, fields)
        return buffers | {name: buffers[name].at[:, 1].set(~buffers[name][:, 1])}

    monkeypatch.setattr(device, "upload", upload_with_a_fault)
    assert [row["different"] for row in equality.measure(1000).rows] == [1000, 1000]
