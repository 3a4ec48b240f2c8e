"""How many replicas trainers need: a policy, what it sees of servers, and a loop that scales by it."""

from mixserve.autoscaling.command import scale_by_command
from mixserve.autoscaling.loop import autoscale
from mixserve.autoscaling.observing import Observer, observe_by
from mixserve.autoscaling.policy import Decision, Policy
from mixserve.autoscaling.seen import Seen
from mixserve.autoscaling.thresholds import Thresholds

__all__ = ["Decision", "Observer", "Policy", "Seen", "Thresholds", "autoscale", "observe_by", "scale_by_command"]
