"""The command `mezzotint`, and `python -m mezzotint`: may be interrupted while it is still reading its own source."""


def main() -> None:
    try:
        from mezzotint.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
