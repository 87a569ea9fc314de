"""Benchmarks of decoding, prefill, translation, training and loading, compared with other programs."""
