"""Accuracy of a cache policy: data, scoring, resumable results, paired statistics. See scripts/evaluate.py."""
