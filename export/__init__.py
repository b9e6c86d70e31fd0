"""Lowering of the model to phone artifacts."""
