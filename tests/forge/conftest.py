"""One small zoo, forged once for all tests of the forge."""

import pytest

from lorascope.forge import forge
from lorascope.zoo import Zoo

SETTINGS = {"base_steps": 60, "steps": 8}


@pytest.fixture(scope="session")
def forged(tmp_path_factory):
    """A zoo of 40 adapters in two cohorts; read only."""
    folder = tmp_path_factory.mktemp("forged") / "zoo"
    forge("digits-vit", 40, folder, settings=SETTINGS)
    return Zoo.open(folder)
