"""The exported model: files, predictor, tables of predictions, server."""
