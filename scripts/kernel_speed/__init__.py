"""Measuring and estimating single kernels: scripts/bench_kernels.py."""
