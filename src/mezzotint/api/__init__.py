"""The HTTP side: one file a dialect, all over `operations`. Knows nothing of stores, workers or models on disk."""
