"""Rows of the tables of docs/benchmarks/index.md, made from files of results."""
