"""The device of a process, by its name in a setting or a configuration."""

import torch


def device_of(name: str) -> torch.device:
    """The device of this name. Raises `ValueError` for one that is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} cannot be used on this machine") from error
    return device
