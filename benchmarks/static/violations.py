"""What a shipped configuration must not do once it is compiled."""

from __future__ import annotations

from benchmarks.static.compile import Compiled

__all__ = ["violations"]


def violations(compiled: Compiled) -> list[str]:
    """Describe what is wrong with a compiled variant; an empty list if nothing is."""
    if compiled.failure:
        return [f"does not compile: {compiled.failure}"]
    faults = []
    architecture = compiled.architecture
    if compiled.spilled:
        unit = "bytes" if architecture.is_nvidia else "registers"
        faults.append(f"spills {compiled.spilled} {unit}, wanted none")
    if compiled.shared > architecture.shared_of_cta:
        faults.append(
            f"takes {compiled.shared} bytes of shared memory, "
            f"a CTA has at most {architecture.shared_of_cta}"
        )
    if compiled.main_loop:
        if not compiled.tensor:
            faults.append(f"has no tensor-core instructions, wanted {architecture.tensor[0]}")
        if architecture.is_nvidia and compiled.num_stages > 1 and not compiled.pipelined:
            faults.append(f"has no pipelined loop, wanted {compiled.num_stages} stages")
    return faults
