"""Shared by calibrate.py and train_controller.py: text, gradient labels, controller features, fitting."""
