"""Page-locked host memory, which a GPU copies from without waiting."""

from __future__ import annotations

import weakref
from typing import Any


def page_locked(shape: Any, dtype: Any) -> Any:
    """An empty tensor in page-locked host memory of exactly its size.

    Torch's own allocator rounds up to a power of two, which wastes up to half of the memory that pieces take.
    """
    import torch

    tensor = torch.empty(shape, dtype=dtype)
    n_bytes = tensor.numel() * tensor.element_size()
    if n_bytes == 0 or int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), n_bytes, 0)) != 0:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    weakref.finalize(tensor, _unlock, tensor.data_ptr())
    return tensor


def _unlock(address: int) -> None:
    import torch

    torch.cuda.synchronize()  # wait for running copies
    torch.cuda.cudart().cudaHostUnregister(address)
