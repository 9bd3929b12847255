"""The denoising loop. Runs inside a worker; nothing above the process boundary may import it."""
