"""Benchmarks: hugqueue compared with other strategies, as ratios from one run. These are not tests."""
