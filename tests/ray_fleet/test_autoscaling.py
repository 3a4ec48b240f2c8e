"""A fleet whose number of replicas follows what trainers feel."""

import signal
import subprocess
import sys
import threading
import time

from mixserve.autoscaling import Thresholds
from tests.processes import DEADLINE_S
from tests.ray_fleet.cluster import fleet_of
from tests.test_autoscale_live import GONE_S, MIXTURE, QUICK, SOURCE, readers
from tests.waiting import wait_until

_SETTLE_S = 20.0  # until clients have found the second replica, and their shares of waiting have faded


def test_it_goes_up_once_and_down_once_with_the_readers(cluster, tmp_path):
    (tmp_path / "waiting.py").write_text(SOURCE)
    config, dry = tmp_path / "mixture.yaml", tmp_path / "dry.log"
    config.write_text(MIXTURE)
    wanted, over = list[int](), threading.Event()
    with fleet_of(config, replicas=1) as fleet, dry.open("wb") as out:

        def watch() -> None:
            while not over.wait(0.1):
                now = fleet.status().wanted[""]
                if wanted[-1:] != [now]:
                    wanted.append(now)

        command = [
            sys.executable,
            "-m",
            "mixserve",
            "ray",
            "autoscale",
            fleet.name,
            "1:8",
            "--dry-run",
            *QUICK,
            "--settle-s",
            str(_SETTLE_S),
        ]
        process = subprocess.Popen([*command, "--address", cluster.address], stdout=out, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            wait_until(lambda: "first look" in dry.read_text(), "the dry run sees the fleet")
            quick = Thresholds(up_after_s=3, settle_s=_SETTLE_S, gone_after_s=3)
            fleet.autoscale(1, 2, thresholds=quick, every_s=0.5)
            with readers([fleet.address]):
                wait_until(lambda: len(fleet.addresses()) == 2, "a second replica")
                assert fleet.wait(DEADLINE_S).autoscaling.startswith("1 to 2: ")
                time.sleep(_SETTLE_S + 10)  # until the policy has judged whether it helps
                assert wanted == [1, 2]
            wait_until(lambda: len(fleet.addresses()) == 1, "one replica again", GONE_S + DEADLINE_S)
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            over.set()
            watcher.join()
    assert wanted == [1, 2, 1]
    print(dry.read_text())
    assert "would have 2 in place of 1 replica: trainers wait" in dry.read_text()


def test_options_that_contradict_each_other(cluster):
    for arguments, said in (
        ((), "give either MIN:MAX"),
        (("1:2", "--off"), "give either MIN:MAX"),
        (("4",), "such as 2:16"),
        (("4:2",), "got 4 and 2"),
    ):
        assert said in cluster.command("autoscale", "mixserve", *arguments, fails=True)
