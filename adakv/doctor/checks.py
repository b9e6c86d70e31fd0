"""The table of checks, in the order of the report."""

from __future__ import annotations

from adakv.doctor import operators, places, python, tools
from adakv.doctor.finding import Check

CHECKS = (
    Check("python", python.interpreter, ""),
    Check("pins", python.pins, "whether files of a package were changed after it was installed"),
    Check("operators", operators.operators, "whether the kernels compute what they should: make test does"),
    Check("processor", operators.processor, "what other programs leave of the processor"),
    Check("disk", places.disk, "quotas"),
    Check("memory", places.memory, "limits of a container"),
    Check("cache", places.cache, "whether the package index and the model hub can be reached"),
    Check("locale", places.encoding, "what the terminal itself can show"),
    Check("tools", tools.tools, "whether a compiler builds for the right system: make kernels does"),
    Check("android", tools.android, "a phone's free space and temperature: adakv bench --device adb looks"),
    Check("apple", tools.apple, "signing, and whether a phone trusts this Mac"),
)
