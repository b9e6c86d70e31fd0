"""Runs saved Core ML ML Programs on any machine: numpy arrays in, numpy arrays out, states carried between calls.

    from device_tests.coreml.evaluator.package import Package

    package = Package(Path("SmolLM2-135M.mlpackage"))
    decode = package.function("decode")
    state = package.new_state()
    outputs = decode.run({"tokens": np.array([[1]], np.int32)}, state)  # `state` is updated in place

coremltools converts on Linux but predicts on macOS only. This package reads the specification inside a `.mlpackage`
(through coremltools' protobufs) and computes it with torch on the CPU. It is a check of what the file says, not of
Apple's hardware: see `program.py` for the arithmetic, which no Core ML compute unit promises to share bit for bit.
"""
