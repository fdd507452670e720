"""Poisoned memory, the data folder, hypothesis, and a header that names every backend."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# Threads that spin while they wait make tiny calls take seconds when other programs use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Weights that come from a file lie at other addresses, and without this MKL's sums, in their last
# bits, depend on how an address is aligned.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import pytest
import torch

# Without a GPU, Triton's interpreter runs its kernels on CPU tensors; it looks when it is imported.
INTERPRETS = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()
if INTERPRETS:
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import Phase, settings  # noqa: E402
from support import interpreter  # noqa: E402
from support.cases import backend_params  # noqa: E402
from support.faulted_gpu import pytest_runtest_logfinish  # noqa: E402, F401  (a hook of pytest)

import genhoi_kernels  # noqa: E402

if INTERPRETS:
    interpreter.mend()

# Repeatable by default, and a failure is not shrunk, which takes minutes;
# `pytest --hypothesis-profile=explore` looks for new examples and shrinks them.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    phases=(Phase.explicit, Phase.generate),
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


def pytest_report_header() -> list[str]:
    """The torch in use, and what each backend says of itself."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    for status in genhoi_kernels.backends():
        lines.append(
            f"backend {status.name}: {'usable' if status.usable else 'NOT usable'}: {status.reason}"
        )
    return lines


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch.empty is full of NaN: an output that nobody wrote fails its test."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@pytest.fixture(params=backend_params())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend but eager; one that cannot run here skips with its reason."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder: $GENHOI_SHARED, else ``shared`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("GENHOI_SHARED", beside))
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}; name one in GENHOI_SHARED")
    return path


if not os.environ.get("EMULATED_GPU"):  # else tools/emugpu's plugin has it

    @pytest.fixture
    def launches() -> None:
        """Launches of a test's kernels."""
        pytest.skip("only the emulated GPU records launches")

    @pytest.fixture
    def warp_schedule() -> None:
        """The order in which warps run."""
        pytest.skip("only the emulated GPU lets warps run in an order of one's choice")
