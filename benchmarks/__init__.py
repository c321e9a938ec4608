"""Measurements behind the README's figures: `python -m benchmarks` (or `make bench`)."""
