"""What an emulated device does wrong, on demand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """authorised: whether it takes the host's keys. answers: False accepts a connection and never speaks (offline).
    bytes_per_second: of the link, to the device. disk_bytes: capacity of /data.
    drop_push_after: the connection is cut once, after so many bytes of file data; drop_run_after: once, so many
    seconds after an arm64 program started. returns: whether it can be connected to after it was cut.
    kill_signal, kill_after: every arm64 program gets the signal so many seconds after its start (9: low memory).
    healthy_runs: so many arm64 programs are left alone first."""

    authorised: bool = True
    answers: bool = True
    bytes_per_second: float | None = None
    disk_bytes: int = 64 << 30
    drop_push_after: int | None = None
    drop_run_after: float | None = None
    returns: bool = True
    kill_signal: int | None = None
    kill_after: float = 0.2
    healthy_runs: int = 0
