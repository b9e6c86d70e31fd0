"""Fixtures of the script tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evaluation.testing import write_data
from training.testing import write_tiny_folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices run slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with text.txt beside it; see training/testing.py."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data-dir; see evaluation/testing.py."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder
