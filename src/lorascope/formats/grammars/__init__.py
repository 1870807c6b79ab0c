"""Key grammars, one file each; a module here lists its members as ``FORMATS`` and the family finds it."""
