"""python -m adakv: the same as the console script `adakv`."""

from adakv_model.environment import require_packages

if __name__ == "__main__":
    require_packages()
    from adakv.front import app

    app(prog_name="adakv")
