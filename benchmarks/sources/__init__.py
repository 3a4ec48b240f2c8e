"""Kinds of data, each read by mixserve, by the format's own loader and by grain."""
