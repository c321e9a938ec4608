"""The device of a process: by its name in a setting or a configuration, and what its errors mean."""

from collections.abc import Iterator

import torch

# How libraries say it that have no error of their own for it.
_NO_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
_FAILED = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_")


def device_of(name: str) -> torch.device:
    """The device of this name. Raises `ValueError` for one that is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} cannot be used on this machine") from error
    return device


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there was no memory left on the GPU or the CPU."""
    return any(
        isinstance(one, (torch.OutOfMemoryError, MemoryError)) or _says(one, _NO_MEMORY)
        for one in _chain(error)
    )


def device_failed(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the GPU failed; no memory left is another matter.

    The process cannot use the GPU any more: from then on every call fails with the same error.
    """
    return not ran_out_of_memory(error) and any(
        isinstance(one, torch.AcceleratorError) or _says(one, _FAILED) for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
