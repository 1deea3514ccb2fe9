"""flowkit's own flow methods on an NVIDIA GPU: their kernels, batches and device."""
