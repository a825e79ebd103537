"""From files to batches: manifest, check, cache, splits, leak audit."""
