"""Measure how well associative memories recall images."""
