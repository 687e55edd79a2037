"""`python -m cadenza_loadtest`."""

from cadenza_loadtest.cli import main

if __name__ == "__main__":
    main()
