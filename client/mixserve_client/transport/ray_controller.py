"""Asks the controller of a fleet in Ray for its replicas: the only code of the client that uses Ray."""

import os
import sys
import threading
from importlib import import_module
from typing import Any

from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.addresses import FleetAddress
from mixserve_client.schema.server import FleetList

NAMESPACE = "mixserve"
_ASK_S = 5.0


class RayController:
    """The controller of `fleet`. Its answers are remembered: a forked process cannot ask it."""

    def __init__(self, fleet: FleetAddress):
        self._fleet = fleet

    def __call__(self) -> FleetList:
        """The replicas at present. Raises OSError if the controller does not answer, and InvalidRequest if there is no
        Ray to ask."""
        if _process.is_forked:
            if (known := _process.told.get(self._fleet)) is None:
                raise InvalidRequest(
                    f"ray://{self._fleet.name}: a forked process cannot use Ray. Make a first call of the client "
                    "before the fork, or use ray://HOST:PORT, the address of any replica"
                )
            return known
        ray = _attached(self._fleet.name)
        try:
            controller = ray.get_actor(self._fleet.name, namespace=NAMESPACE)
            version, addresses = ray.get(controller.replicas.remote(self._fleet.source), timeout=_ASK_S)
        except ValueError as error:
            raise OSError(f"no fleet of the name {self._fleet.name!r} is up in this Ray cluster") from error
        except Exception as error:  # Ray has many, and they have no common base
            raise OSError(f"the controller does not answer: {type(error).__name__}: {error!s:.300}") from error
        _process.told[self._fleet] = told = FleetList(version, tuple(addresses))
        return told


class _Process:
    """Whether this process was forked from one that used Ray, and what the controllers told there."""

    def __init__(self) -> None:
        self.is_forked = False
        self.told = dict[FleetAddress, FleetList]()
        self.attaching = threading.Lock()
        renew_in_forks(self, _Process._renew)

    def _renew(self) -> None:
        ray = sys.modules.get("ray")
        self.is_forked = self.is_forked or (ray is not None and ray.is_initialized())
        self.attaching = threading.Lock()


_process = _Process()


def _attached(name: str) -> Any:
    """The module `ray`, connected to a cluster: that of this process, else that of RAY_ADDRESS."""
    try:
        ray = import_module("ray")
    except ImportError as error:  # where the client was made, there was Ray
        raise InvalidRequest(f"ray://{name} is a name in a Ray cluster, and Ray cannot be imported: {error}") from error
    with _process.attaching:
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            if not address:
                raise InvalidRequest(
                    f"ray://{name} is a name in a Ray cluster, to which this process is not connected: call ray.init "
                    "first or set RAY_ADDRESS, or use ray://HOST:PORT, the address of any replica"
                )
            try:
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
            except Exception as error:
                raise OSError(f"cannot connect to the Ray cluster of RAY_ADDRESS={address}: {error!s:.300}") from error
    return ray
