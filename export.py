"""python export.py --target android: see `python export.py --help`."""

from export.cli import app

if __name__ == "__main__":
    app()
