"""python -m device_tests.bench."""

from device_tests.bench.cli import app

if __name__ == "__main__":
    app()
