"""``python -m bionas_fast``, the same as ``bionas-fast``."""

from bionas_fast.cli.app import main

if __name__ == "__main__":
    main()
