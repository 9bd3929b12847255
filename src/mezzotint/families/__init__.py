"""Model architectures. `table` is torch-free and may be imported anywhere; the rest only inside a worker."""
