"""One small zoo, and one small Stable Diffusion, made once for all tests of the forge."""

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


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """A tiny Stable Diffusion, a tiny CLIP and photographs, in the published layouts; read only."""
    from forge.tiny_stable_diffusion import write_all  # needs the extra [forge], as the tests that ask for it

    folder = tmp_path_factory.mktemp("published")
    write_all(folder)
    return folder
