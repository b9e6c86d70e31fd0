"""python export.py --target android: see `python export.py --help`."""

from adakv_model.environment import require_packages

if __name__ == "__main__":
    require_packages()
    from export.cli import app

    app()
