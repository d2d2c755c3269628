"""The compiled kernels: building, loading, schemas."""

from bionas_fast.native.library import (
    Status,
    cuda_status,
    isas,
    load,
    obstacle,
    obstacle_with_cuda,
    release_memory,
    status,
    use_isa,
)
