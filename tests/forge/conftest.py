"""One small zoo, forged once for all tests of the forge."""

import pytest

from forge.zoos import SETTINGS
from lorascope.forge import forge
from lorascope.zoo import Zoo


@pytest.fixture(scope="session")
def forged(tmp_path_factory):
    """A zoo of 40 adapters in two cohorts; read only."""
    folder = tmp_path_factory.mktemp("forged") / "zoo"
    forge("digits-vit", 40, folder, settings=SETTINGS)
    return Zoo.open(folder)
