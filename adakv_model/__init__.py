"""SmolLM with an adaptive-precision KV cache: model, quantizer, cache, controller and their kernels."""
