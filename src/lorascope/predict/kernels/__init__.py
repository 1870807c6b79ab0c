"""The invariant kernels, one file each."""
