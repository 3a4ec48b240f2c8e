"""`mixserve top` in a real terminal, beside a client that knows what it has read."""

import re
import signal
from pathlib import Path

import pytest

from mixserve_client import MixClient
from tests.ports import free_ports
from tests.processes import ServerProcess, freeze, server_process, write_mixture
from tests.terminal import Screen, Terminal

TOP = ("-m", "mixserve", "top", "--every", "0.2")
COLOURS = {str(number) for number in (*range(30, 38), 38, *range(90, 98))}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("top"))


@pytest.fixture(scope="module")
def address(config: Path):
    with server_process(config) as server:
        yield server.address()


def records(text: str) -> dict[str, int]:
    """What the column RECORDS says of each source."""
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("SOURCE"))
    end = header.index("RECORDS ") + len("RECORDS")  # not RECORDS/S
    rows = [line for line in lines if line.startswith("train/")]
    return {row.split()[0]: int(row[:end].split()[-1].replace(",", "")) for row in rows}


def test_pictures_count_when_they_are_whole():
    """A terminal gets them in pieces, and one of the size of before after a change of it."""
    screen = Screen(20, 5)
    screen.feed("\x1b[?1049h\x1b[Hone\x1b[K\r\nline\x1b[K\x1b[J")
    assert screen.is_whole
    screen.feed("\x1b[Hanother\x1b[K\r\n")
    assert not screen.is_whole
    screen.feed("l\x1b[K\x1b[J")
    assert screen.is_whole
    assert screen.text == "another\nl\n\n\n"
    screen.resize(5, 3)
    screen.feed("\x1b[Hanother\x1b[K\x1b[J")
    assert not screen.is_whole
    screen.feed("\x1b[Hother\x1b[K\x1b[J")
    assert screen.is_whole
    with pytest.raises(AssertionError, match="wider than the terminal"):
        screen.feed("\x1b[Hanother")


def test_figures_are_those_of_a_client(config: Path):
    with server_process(config) as server:
        address = server.address()
        with Terminal(*TOP, address) as terminal, MixClient.connect(address, patience_s=20) as client:
            got = {"train/a": 0, "train/b": 0}
            for batch in client.batches(50, key=1, stop=5000, provenance=True):
                for number, name in enumerate(got):
                    got[name] += int((batch["source_id"] == number).sum())
            terminal.wait_for(lambda text: "SOURCE" in text and records(text) == got)
            text = terminal.wait_for(lambda text: "serving" in text and "CLIENT" in text)
            assert re.search(r"train/a +70\.00% +\d", text)
            assert re.search(r"train/b +30\.00% +\d", text)
            terminal.type("q")
            assert terminal.wait() == 0


def test_the_picture_follows_the_size(address: str):
    with Terminal(*TOP, address, "127.0.0.1:1", columns=160, rows=40) as terminal:
        wide = terminal.wait_for(lambda text: "VERSION" in text and "train/b" in text and "no answer" in text)
        assert "more" not in wide
        for columns, rows in ((60, 9), (30, 5), (10, 2), (1, 1), (160, 40)):
            terminal.resize(columns, rows)
            # The emulator refuses lines that are too long, and one line too many scrolls the title away.
            text = terminal.wait_for(
                lambda text, columns=columns: text.startswith("mixserve top"[: columns - 1]) and _fits(text, columns)
            )
            assert len(text.splitlines()) <= rows
            if rows == 9:
                terminal.wait_for(lambda text: "… 1 more" in text or "… 2 more" in text)
        terminal.wait_for(lambda text: "VERSION" in text and "train/b" in text)


def _fits(text: str, columns: int) -> bool:
    return all(len(line) <= columns for line in text.splitlines())


@pytest.mark.parametrize(("flags", "env"), [((), {"NO_COLOR": "1"}), (("--no-color",), {})])
def test_without_colours(address: str, flags: tuple[str, ...], env: dict[str, str]):
    with Terminal(*TOP, *flags, address, env=env) as terminal:
        terminal.wait_for(lambda text: "train/b" in text)
        assert not terminal.screen.colours & COLOURS


def test_with_colours(address: str):
    with Terminal(*TOP, address) as terminal:
        terminal.wait_for(lambda text: "train/b" in text)
        assert terminal.screen.colours & COLOURS


@pytest.mark.parametrize("way", ["q", "\x03", signal.SIGTERM])
def test_the_terminal_is_as_before(address: str, way: str | signal.Signals):
    """Also while a server does not answer."""
    with Terminal(*TOP, address, "127.0.0.1:1") as terminal:
        terminal.wait_for(lambda text: "train/b" in text)
        assert terminal.screen.alternate
        assert not terminal.screen.cursor
        assert terminal.modes_now() != terminal.modes
        if isinstance(way, str):
            terminal.type(way)
        else:
            terminal.send(way)
        assert terminal.wait() == (143 if way == signal.SIGTERM else 0)
        assert not terminal.screen.alternate
        assert terminal.screen.cursor
        assert terminal.modes_now() == terminal.modes
        assert terminal.screen.text.strip() in ("", "^C")


def test_suspended_and_continued(address: str):
    with Terminal(*TOP, address) as terminal:
        terminal.wait_for(lambda text: "train/b" in text)
        terminal.type("\x1a")
        terminal.wait_for_stop()
        assert not terminal.screen.alternate
        assert terminal.screen.cursor
        assert terminal.modes_now() == terminal.modes
        terminal.send(signal.SIGCONT)
        terminal.wait_for(lambda text: terminal.screen.alternate and "train/b" in text)
        terminal.type("q")
        assert terminal.wait() == 0


def test_other_keys_do_nothing(address: str):
    with Terminal(*TOP, address) as terminal:
        terminal.wait_for(lambda text: "train/b" in text)
        terminal.type("\x1bOQ")  # F2
        terminal.type("x")
        terminal.screen.feed("\x1b[H\x1b[J")
        terminal.wait_for(lambda text: "train/b" in text)
        terminal.type("Q")
        assert terminal.wait() == 0


def test_a_server_that_hangs(config: Path):
    with server_process(config) as server:
        address = server.address()
        with Terminal(*TOP, address) as terminal:
            terminal.wait_for(lambda text: "train/b" in text)
            freeze(server.process.pid)
            terminal.wait_for(lambda text: "no answer" in text and "DeadlineExceeded" in text)
            server.process.send_signal(signal.SIGCONT)
            terminal.wait_for(lambda text: "no answer" not in text and "train/b" in text)
            freeze(server.process.pid)
            terminal.type("q")  # while a call is under way
            assert terminal.wait() == 0
            assert terminal.screen.text.strip() == ""


def test_a_server_that_is_lost_and_comes_back(config: Path):
    port = free_ports()
    flags = ("--port", str(port))
    first = ServerProcess(config, *flags)
    try:
        address = first.address()
        with Terminal(*TOP, address) as terminal, MixClient.connect(address, patience_s=60) as client:
            batches = client.batches(50, key=1)
            for _ in range(40):
                next(batches)
            terminal.wait_for(lambda text: "SOURCE" in text and sum(records(text).values()) >= 2000)
            first.kill()
            lost = terminal.wait_for(lambda text: "no answer for 1s" in text)
            assert "1 without an answer" in lost
            assert "SOURCE" not in lost
            with server_process(config, *flags) as second:
                second.address()
                with MixClient.connect(address, patience_s=20) as reader:
                    reader.get_batch_at(0, 64, key=2)
                    seen = list[str]()
                    back = terminal.wait_for(
                        lambda text: seen.append(text) or ("SOURCE" in text and sum(records(text).values()) > 0)
                    )
            assert "no answer" not in back
            numbers = re.findall(r"-[\d.,]+", "\n".join(seen))
            assert not numbers, "a rate is negative"
            terminal.type("q")
            assert terminal.wait() == 0
    finally:
        first.kill()
