"""Benchmarks: one script a claim, spax and a peer alternating, results as JSON."""
