"""What tests of forged zoos share: the settings of small ones, and what makes two of them the same."""

import hashlib

SETTINGS = {"base_steps": 60, "steps": 8}


def state(zoo):
    """The hash of every file that the zoo's content consists of."""
    return {
        path.relative_to(zoo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in zoo.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "zoo.json", "log.jsonl")
    }
