"""Shared by the benchmarks: data, processes and pipes, spreads and targets."""
