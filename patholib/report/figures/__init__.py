"""Figures: plain data in, one closed matplotlib Figure out."""
