"""Steps that are replayed as a CUDA graph.

A step launches thousands of small kernels. A graph launches all of them at once.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Record = Callable[[Callable[[], None]], Callable[[], None]]

NUM_EAGER_STEPS = 3
"""Number of steps that run eagerly before one is captured, so that all is set up."""


def cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Capture the kernels that `function` launches.

    Returns:
        A function that launches them again.

    Raises:
        RuntimeError: If `function` waits for the device, or can't be captured for another
            reason.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(
        graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
    ):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")  # before the capture becomes invalid
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return graph.replay


class CapturedStep:
    """A step that is captured once and replayed for every batch of the same shapes.

    Batches of other shapes, such as the last batch of an epoch, run eagerly. If the step
    can't be captured, all batches run eagerly, with a warning. An example is a network of
    the user that waits for the device.
    """

    def __init__(
        self, step: Callable[[Tensor, Tensor, Tensor], None], record: Record = cuda_graph
    ) -> None:
        """
        Args:
            step: Takes a batch, and leaves its results at addresses that do not change.
            record: Runs or captures a function, and returns a function that repeats it.
        """
        self.step, self.record = step, record
        self.num_eager = 0
        self.inputs: tuple[Tensor, ...] = ()
        self.replay: Callable[[], None] | None = None
        self.failed = False

    def __call__(self, *batch: Tensor) -> None:
        """Take a step on a batch."""
        seen = [tensor.shape for tensor in batch] == [kept.shape for kept in self.inputs]
        if seen and self.replay is None and not self.failed:
            self._capture()
        if seen and self.replay is not None:
            for kept, new in zip(self.inputs, batch, strict=True):
                kept.copy_(new)
            self.replay()
            return
        self.step(*batch)
        self.num_eager += 1
        if not self.failed and self.replay is None and self.num_eager >= NUM_EAGER_STEPS:
            self.inputs = tuple(tensor.clone() for tensor in batch)

    def _capture(self) -> None:
        try:
            self.replay = self.record(lambda: self.step(*self.inputs))
        except RuntimeError as error:
            self.failed = True
            warnings.warn(
                "The training step could not be captured as a CUDA graph and runs "
                f"eagerly, which is slower: {error}",
                stacklevel=2,
            )
