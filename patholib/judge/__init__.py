"""Predictions, decision, metrics with intervals, heatmaps and their checks."""
