"""Readings of servers -> the figures that `mixserve top` shows, of each server and of all together.

Rates are per second, over the time between the last two readings; None until there are two.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mixserve.readings.grouping import Labels, group, group_counts, mean_by_weight, quantile
from mixserve.readings.growth import Reading
from mixserve_client.schema.stats import Stats

_MIXTURE, _SOURCE, _CLIENT = ("mixture",), ("mixture", "source"), ("mixture", "client")
_DEVIATIONS, _LEAST_PART = 5.0, 0.05


@dataclass(frozen=True)
class Server:
    """One server. Unless it `answers`, because of an `error` or since it was just asked, the rest is unknown.

    So is what a token may not see. `silent_s` is for how long it has not answered, 0 if it does. `started` is in
    seconds since 1970, and memory in bytes.
    """

    address: str
    answers: bool = True
    error: str = ""
    silent_s: float = 0.0
    version: str = ""
    serving: bool | None = None
    started: float | None = None
    processes: int = 1
    memory: float | None = None
    memory_limit: float | None = None
    sessions: int | None = None
    replies_s: float | None = None
    records_s: float | None = None
    bytes_s: float | None = None


@dataclass(frozen=True)
class Source:
    """A source of a mixture. Shares are of the mixture's records, since the servers started, and in the last interval.

    `is_off`: the shares differ by more than chance explains.
    """

    mixture: str
    source: str
    requested: float | None
    realised: float | None
    realised_now: float | None
    is_off: bool
    records: int
    records_s: float | None
    bytes_s: float | None
    passes: float | None


@dataclass(frozen=True)
class Client:
    """A client of a mixture, by its name. `wait_share` is which part of its time it waits for batches, in 0..1."""

    mixture: str
    client: str
    readers: int
    records: int
    records_s: float | None
    wait_share: float | None


@dataclass(frozen=True)
class Mixture:
    """A mixture. `p50_s` and `p99_s` are of making a reply in the last interval: None without one, infinite above the
    histogram's last bound."""

    mixture: str
    serving: bool | None
    replies_s: float | None
    records_s: float | None
    bytes_s: float | None
    p50_s: float | None
    p99_s: float | None
    under_way: int | None
    waiting: int | None
    readers: int
    wait_share: float | None
    apart: int | None
    errors_s: float | None


@dataclass(frozen=True)
class Count:
    """How often something happened: an error of a class (`what`) in calls on a mixture, or a limit that was hit."""

    what: str
    mixture: str
    count: int
    per_s: float | None


@dataclass(frozen=True)
class Figures:
    """All that is shown. Mixtures, sources, clients, errors and limits are those of all servers that answer."""

    servers: Sequence[Server]
    mixtures: Sequence[Mixture] = field(default=())
    sources: Sequence[Source] = field(default=())
    clients: Sequence[Client] = field(default=())
    errors: Sequence[Count] = field(default=())
    limits: Sequence[Count] = field(default=())


def server_of(address: str, reading: Reading) -> Server:
    """The figures of a server that answers."""
    stats, rates = [reading.stats], [reading.rates]

    def one(name: str, combine: Callable[[Iterable[float]], float] = math.fsum) -> float | None:
        return group(stats, name, (), combine).get(())

    versions = group(stats, "mixserve_build_info", ("version",))
    workers = group(stats, "mixserve_serving", ("worker",))
    serving, sessions = one("mixserve_serving", min), one("mixserve_sessions")
    return Server(
        address,
        version=", ".join(sorted(version for (version,) in versions)),
        serving=None if serving is None else bool(serving),
        started=one("mixserve_start_time_seconds", min),
        processes=max(1, len(workers)),
        memory=one("mixserve_memory_bytes"),
        memory_limit=one("mixserve_memory_limit_bytes"),
        sessions=None if sessions is None else int(sessions),
        replies_s=_rate(rates, "mixserve_replies_total", ()).get(()),
        records_s=_rate(rates, "mixserve_records_total", ()).get(()),
        bytes_s=_rate(rates, "mixserve_source_bytes_total", ()).get(()),
    )


def figures_of(servers: Sequence[Server], readings: Sequence[Reading]) -> Figures:
    """The figures of all `servers`; `readings` are the last ones of those that answer."""
    stats, rates, grew = ([getattr(one, part) for one in readings] for part in ("stats", "rates", "grew"))
    # A reader that several processes or servers know is one reader.
    readers: dict[Labels, float] = group(stats, "mixserve_readers", _CLIENT, max)
    of_mixture = dict[str, int]()
    for (mixture, _), count in readers.items():
        of_mixture[mixture] = of_mixture.get(mixture, 0) + int(count)
    names = sorted(
        {name for (name,) in group(stats, "mixserve_replies_total", _MIXTURE)}
        | {name for (name,) in group(stats, "mixserve_mixture_serving", _MIXTURE)}
    )
    return Figures(
        servers,
        _mixtures(names, of_mixture, stats, rates, grew),
        _sources(of_mixture, stats, rates, grew),
        _clients(readers, stats, rates),
        _counts("mixserve_errors_total", ("error", "mixture"), stats, rates),
        _counts("mixserve_limit_hits_total", ("limit",), stats, rates),
    )


def is_off(got: float, wanted: float, of: float, readers: int = 1) -> bool:
    """Whether `got` records of a source, of `of` in all, differ from the `wanted` ones by more than chance explains.

    Draws spread by the square root of their number; `readers` that read the same positions count the same draws. Less
    than 5 % do not matter.
    """
    if of <= 0:
        return False
    spread = math.sqrt(max(1, readers) * wanted * max(0.0, 1 - wanted / of))
    return abs(got - wanted) > max(_DEVIATIONS * spread + 1, _LEAST_PART * wanted)


def _mixtures(
    names: Sequence[str],
    readers: Mapping[str, int],
    stats: Sequence[Stats],
    rates: Sequence[Stats],
    grew: Sequence[Stats],
) -> list[Mixture]:
    serving = group(stats, "mixserve_mixture_serving", _MIXTURE, min)
    replies, records, sent, errors = (
        _rate(rates, name, _MIXTURE)
        for name in (
            "mixserve_replies_total",
            "mixserve_records_total",
            "mixserve_source_bytes_total",
            "mixserve_errors_total",
        )
    )
    made = group_counts(grew, "mixserve_batch_seconds", _MIXTURE)
    under_way, waiting = (group(stats, name, _MIXTURE) for name in ("mixserve_under_way", "mixserve_waiting"))
    waits = mean_by_weight(stats, "mixserve_wait_share", "mixserve_readers", _MIXTURE)
    apart = group(stats, "mixserve_readers_apart_positions", _MIXTURE, max)
    found = list[Mixture]()
    for name in names:
        which = (name,)
        p50, p99 = (quantile(*made[which], part) if which in made else None for part in (0.5, 0.99))
        found.append(
            Mixture(
                name,
                None if which not in serving else bool(serving[which]),
                replies.get(which),
                records.get(which),
                sent.get(which),
                p50,
                p99,
                _whole(under_way.get(which)),
                _whole(waiting.get(which)),
                readers.get(name, 0),
                waits.get(which),
                _whole(apart.get(which)),
                # A class that has not come yet has no sample: that is 0, and not unknown.
                errors.get(which, 0.0 if which in replies else None),
            )
        )
    return found


def _sources(
    readers: Mapping[str, int], stats: Sequence[Stats], rates: Sequence[Stats], grew: Sequence[Stats]
) -> list[Source]:
    records, requested = (
        group(stats, name, _SOURCE) for name in ("mixserve_records_total", "mixserve_requested_records_total")
    )
    grown = group(grew, "mixserve_records_total", _SOURCE)
    records_s, bytes_s = (
        _rate(rates, name, _SOURCE) for name in ("mixserve_records_total", "mixserve_source_bytes_total")
    )
    passes = group(stats, "mixserve_passes_total", _SOURCE)
    all_records, all_grown = _by_mixture(records), _by_mixture(grown)
    found = list[Source]()
    for which, count in records.items():
        mixture, source = which
        of = all_records[mixture]
        wanted = requested.get(which)  # None for some sources of nested mixtures
        found.append(
            Source(
                mixture,
                source,
                None if wanted is None else _part(wanted, of),
                _part(count, of),
                _part(grown.get(which, 0.0), all_grown.get(mixture, 0.0)),
                wanted is not None and is_off(count, wanted, of, readers.get(mixture, 1)),
                int(count),
                records_s.get(which),
                bytes_s.get(which),
                passes.get(which),
            )
        )
    # Within a mixture as the server has them; but what is wrong comes first, and so stays if rows are left out.
    return sorted(found, key=lambda one: (not one.is_off, one.mixture))


def _clients(readers: Mapping[Labels, float], stats: Sequence[Stats], rates: Sequence[Stats]) -> list[Client]:
    """The clients that read at present, those that wait most first."""
    records = group(stats, "mixserve_client_records_total", _CLIENT)
    records_s = _rate(rates, "mixserve_client_records_total", _CLIENT)
    waits = mean_by_weight(stats, "mixserve_client_wait_share", "mixserve_readers", _CLIENT)
    found = [
        Client(which[0], which[1], int(count), int(records.get(which, 0)), records_s.get(which), waits.get(which))
        for which, count in readers.items()
        if count
    ]

    def hunger(one: Client) -> tuple[float, float, str]:
        return -1.0 if one.wait_share is None else one.wait_share, one.records_s or 0.0, one.client

    return sorted(found, key=hunger, reverse=True)


def _counts(name: str, labels: Sequence[str], stats: Sequence[Stats], rates: Sequence[Stats]) -> list[Count]:
    """What happened at least once: first what happens now, most often first."""
    per_s = _rate(rates, name, labels)
    found = [
        Count(which[0], which[1] if len(which) > 1 else "", int(count), per_s.get(which))
        for which, count in group(stats, name, labels).items()
        if count
    ]
    return sorted(found, key=lambda one: (-(one.per_s or 0.0), -one.count, one.what, one.mixture))


def _rate(rates: Sequence[Stats], name: str, labels: Sequence[str]) -> dict[Labels, float]:
    return group(rates, name, labels)


def _by_mixture(values: Mapping[Labels, float]) -> dict[str, float]:
    sums = dict[str, float]()
    for (mixture, _), value in values.items():
        sums[mixture] = sums.get(mixture, 0.0) + value
    return sums


def _part(value: float, of: float) -> float | None:
    return value / of if of > 0 else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
