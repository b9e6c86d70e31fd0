"""Parts of scripts/bench_peers.py. The run_*.py are the children that it starts."""
