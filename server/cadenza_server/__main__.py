"""`python -m cadenza_server`: the same as `cadenza`."""

from cadenza_server.cli import main

if __name__ == "__main__":
    main()
