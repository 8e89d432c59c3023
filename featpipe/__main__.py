"""``python -m featpipe`` is the command ``featpipe``."""

from featpipe.cli import main

if __name__ == "__main__":
    main()
