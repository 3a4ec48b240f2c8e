"""Replicas of a server as actors of Ray, which places and restarts them: needs the extra `mixserve[ray]`."""

from mixserve.ray.fleet import Fleet, attach, up
from mixserve.ray.messages import ReplicaStatus

__all__ = ["Fleet", "ReplicaStatus", "attach", "up"]
