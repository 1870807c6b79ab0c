"""``embedding_score``: how well generated images show what was meant, judged in an embedding that others trained.

    score = mean over images i of max over targets k of cos(image_i, target_k)

With the text embedding of a prompt as the only target it is the CLIP score (Hessel et al., arXiv 2104.08718, without
its constant 2.5 and its cut at 0); with embeddings of images of the subject it is the fidelity of DreamBooth (Ruiz
et al., arXiv 2208.12242), each image held against the target that it is nearest to, since a sample shows one of the
things that were learned and not their mean.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lorascope.errors import ForgeError


def embedding_score(images: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine of embedded images to the nearest embedded target.

    Args:
        images: embeddings of generated images, [..., n, d].
        targets: embeddings of what was meant, images or text, [..., k, d].

    Returns:
        Scores in −1..1, [...].

    Raises:
        ForgeError: where there is no image or target, or the two are not of one embedding.

    >>> import pytest; torch = pytest.importorskip("torch")
    >>> images = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> float(embedding_score(images, torch.tensor([[1.0, 0.0]])))
    0.5
    >>> float(embedding_score(images, torch.eye(2)))
    1.0
    """
    if images.shape[-1] != targets.shape[-1] or not images.shape[-2] or not targets.shape[-2]:
        raise ForgeError(
            "images and targets must be vectors of one embedding, at least one of each",
            expected="[..., n, d] and [..., k, d]",
            found=f"{list(images.shape)} and {list(targets.shape)}",
        )
    cosines = F.normalize(images, dim=-1) @ F.normalize(targets, dim=-1).transpose(-1, -2)
    return cosines.amax(-1).mean(-1)
