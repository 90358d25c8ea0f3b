"""Accuracy under attack and under corruptions."""
