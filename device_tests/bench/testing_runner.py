"""The runner of testing_device.ScriptedDevice: understands the runner's words, invents the times."""

import argparse
import json
import sys

parser = argparse.ArgumentParser()
for name in ("artifact", "tokens-file", "cpu-mask"):
    parser.add_argument(f"--{name}")
for name in ("pp", "tg", "depth", "threads"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--bench", action="store_true")
o = parser.parse_args()
if o.tg == 13:  # the unlucky test
    sys.exit("error: the program failed at position 13")
with open(o.tokens_file, encoding="utf-8") as file:
    words = file.read().split()
memory = {"rss": 1, "anonymous": 1, "file": 1}
print(
    json.dumps(
        {
            "schema": "adakv-run-1",
            "runner": {"isa": "none", "threads": o.threads, "cpu_mask": o.cpu_mask, "platform": "linux"},
            "test": {"pp": o.pp, "tg": o.tg, "depth": o.depth},
            "load_ns": 1000,
            "cold_step_ns": 1000,
            "fill_ns": o.depth * 1000,
            "prefill_ns": [o.pp * 1000] if o.pp else [],
            "prefill_tokens": [o.pp] if o.pp else [],
            "decode_ns": [1000 + int(words[0])] * o.tg,
            "first_token_ns": None,
            "started_ns": {"load": 0, "warm_up": 1000, "fill": 2000, "prefill": 3000, "decode": 4000},
            "clocks_khz": {"cores": [], "before": [], "after": []},
            "memory": {"loaded": memory, "end": memory, "peak": 1},
            "cache": {"bytes": 1, "tokens_by_tier": [1], "position": o.depth + o.pp + o.tg},
            "finish_reason": "done",
        }
    )
)
