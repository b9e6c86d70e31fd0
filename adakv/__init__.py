"""The front door: `adakv COMMAND`. The top floor, which may call everything below and loads it only when asked."""
