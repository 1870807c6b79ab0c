"""The invariant features, one file each."""
