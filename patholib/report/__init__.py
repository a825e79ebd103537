"""Figures, report, cards and comparison, written from the files of a run."""
