"""python -m adakv: the same as the console script `adakv`."""

from adakv.front import app

if __name__ == "__main__":
    app(prog_name="adakv")
