"""The LoL models, one file each."""
