"""What the benchmarks share: their data, processes and pipes, spreads and targets."""
