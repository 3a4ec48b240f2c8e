"""Ways to read the data: a module each for mixserve, the formats' own loaders and grain."""
