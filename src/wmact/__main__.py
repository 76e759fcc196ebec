"""`python -m wmact`."""

from wmact.cli import main

if __name__ == "__main__":
    main()
