"""Latency, memory and correctness of exported artifacts on a device: python -m device_tests.bench --help."""
