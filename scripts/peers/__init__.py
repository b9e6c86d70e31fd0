"""Parts of scripts/bench_peers.py. Modules named run_*.py are the children it starts, some in the peers' environment."""
