"""python -m adakv_model.generate: see adakv_model/runtime/generate.py."""

from adakv_model.runtime.generate import app

if __name__ == "__main__":
    app()
