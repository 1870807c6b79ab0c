"""Kinds of adapters that the forge trains: one file each, with paper, formula and initialisation."""
