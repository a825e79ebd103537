"""The HTTP server around an exported model."""
