"""``python -m featpipe`` is the command ``featpipe``."""

from featpipe.cli import program

if __name__ == "__main__":
    program()
