"""The race: mixserve beside what its machine can do, and beside peers; run by `make bench`."""
