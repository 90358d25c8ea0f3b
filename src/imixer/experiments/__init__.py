"""Reproduce the paper's tables and figures, and go beyond them: one small file per experiment."""
