"""`python -m homeward` is the command `homeward`."""

from homeward.cli import main

if __name__ == "__main__":
    main()
