"""Fleets of replicas and trainers on paper: a simulation fed with measured service times, and its check."""
