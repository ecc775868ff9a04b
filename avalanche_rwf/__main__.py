"""``python -m avalanche_rwf`` is the ``avalanche-rwf`` command."""

from avalanche_rwf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
