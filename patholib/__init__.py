"""From a folder of medical images to a classifier one can trust, explain and use; importing it does nothing."""

__version__ = "0.1.0"
