"""Entry point of ``python -m bionas_fast``, equivalent to ``bionas-fast``."""

from bionas_fast.cli.app import main

if __name__ == "__main__":
    main()
