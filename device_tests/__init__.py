"""Measurements and comparisons on devices; python -m device_tests.NAME runs one."""

import adakv_model  # noqa: F401  (ends python -m with one line where the packages are missing)
