"""Prepared data of any size: shards with an index, written once by any number of processes."""
