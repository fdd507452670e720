"""What a shipped configuration must not do once it is compiled."""

from __future__ import annotations

from benchmarks.static.compile import Compiled

__all__ = ["violations"]


def violations(compiled: Compiled) -> list[str]:
    """What is wrong with a compiled variant, each in words; nothing if all is well."""
    if compiled.failure:
        return [f"does not compile: {compiled.failure}"]
    found = []
    architecture = compiled.architecture
    if compiled.spilled:
        unit = "bytes" if architecture.is_nvidia else "registers"
        found.append(f"spills {compiled.spilled} {unit}, wanted none")
    if compiled.shared > architecture.shared_of_cta:
        found.append(
            f"takes {compiled.shared} bytes of shared memory, "
            f"a CTA has at most {architecture.shared_of_cta}"
        )
    if compiled.main_loop:
        if not compiled.tensor:
            found.append(f"has no tensor-core instructions, wanted {architecture.tensor[0]}")
        if architecture.is_nvidia and compiled.num_stages > 1 and not compiled.pipelined:
            found.append(f"has no pipelined loop, wanted {compiled.num_stages} stages")
    return found
