"""SmolLM with an adaptive-precision KV cache: model, quantizer, cache, controller and their kernels."""

import sys

from adakv_model.environment import require_packages

if sys.argv[:1] == ["-m"]:  # python -m adakv_model.generate: this file comes before it
    require_packages()
