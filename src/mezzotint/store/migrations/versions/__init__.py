"""One file per revision. A released one must not change."""
