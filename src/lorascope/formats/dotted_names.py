"""Names of the layers of image models under prefixes of their own, and the sites that they stand for.

    diffusion_model.double_blocks.0.img_attn.qkv           →  transformer.double_blocks.0.img_attn.qkv
    diffusion_model.input_blocks.4.1.proj_in               →  unet.down_blocks.1.attentions.0.proj_in
    text_encoders.clip_l.transformer.text_model.…          →  text_encoder.text_model.…

A layer of the LDM U-Net gets its path in diffusers' U-Net, as in kohya files; all other paths stay.

Source: https://github.com/comfyanonymous/ComfyUI, comfy/lora.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lorascope.formats.kohya_names import sites_of
from lorascope.formats.kohya_vocabulary import diffusers_path

DENOISER = "diffusion_model."
_PREFIXES: Mapping[str, str] = {
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
    "text_encoders.t5xxl.transformer.": "text_encoder_3.",
}
_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")


def site_of(name: str) -> str:
    """The site of a dotted name; a name under no known prefix is its own site.

    >>> site_of("diffusion_model.single_blocks.0.linear1"), site_of("transformer.proj_out")
    ('transformer.single_blocks.0.linear1', 'transformer.proj_out')
    """
    if name.startswith(DENOISER):
        path = name.removeprefix(DENOISER)
        if path.startswith(_UNET):
            return f"unet.{diffusers_path(path) or path}"
        return f"transformer.{path}"
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            return component + name.removeprefix(prefix)
    return name


def dotted_sites(names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Name → site, kohya names among them included; where two names would be one site, both stay as they are."""
    names = list(dict.fromkeys(names))
    flat = sites_of([name for name in names if "." not in name], metadata)
    sites = {name: flat.get(name) or site_of(name) for name in names}
    taken = Counter([*sites.values(), *(name for name, site in sites.items() if site != name)])
    return {name: site if taken[site] == 1 else name for name, site in sites.items()}


def name_of(site: str) -> str | None:
    """The dotted name under which ComfyUI finds a site; None where it finds none. The law: ``site_of`` undoes it.

    Layers of diffusers' transformers keep their names, which ComfyUI knows too. Those of the U-Net it finds under the
    names of kohya files.

    >>> name_of("transformer.single_blocks.0.linear1"), name_of("transformer.transformer_blocks.0.attn.to_q")
    ('diffusion_model.single_blocks.0.linear1', 'transformer.transformer_blocks.0.attn.to_q')
    >>> name_of("unet.conv_in") is None
    True
    """
    component, _, path = site.partition(".")
    if component == "transformer":
        name = site if "transformer_blocks" in path else DENOISER + path
    elif site.startswith((DENOISER, "text_encoders.")):
        name = site
    else:
        prefix = next((prefix for prefix, known in _PREFIXES.items() if known == f"{component}."), None)
        # the second text encoder of some pipelines is a T5, which is no CLIP-G
        is_clip = path.startswith(("text_model.", "text_projection"))
        name = prefix + path if prefix and is_clip == ("clip" in prefix) else ""
    return name if path and site_of(name) == site else None
