"""A tiny random Stable Diffusion and CLIP in the published layout, and photographs in the layouts of the data sets."""

import json

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel

from lorascope.forge.recipes.celeba_sd14 import LABELS
from lorascope.forge.recipes.imagenette_sd14 import CLASSES

TOKENS = 10
PEOPLE, EACH = 6, 4  # persons, and photographs of each
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
VOCABULARY = {token: n for n, token in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ab"])}
VOCABULARY |= {"<|startoftext|>": len(VOCABULARY), "<|endoftext|>": len(VOCABULARY) + 1}
SMALL = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    **SMALL,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": TOKENS,
    "bos_token_id": VOCABULARY["<|startoftext|>"],
    "eos_token_id": VOCABULARY["<|endoftext|>"],
    "pad_token_id": VOCABULARY["<|endoftext|>"],
}


def write_tokenizer(folder):
    """As Stable Diffusion 1 has it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def write_model(folder, prediction="epsilon"):
    """The base, laid out as ``StableDiffusionPipeline.save_pretrained`` does, with the schedule of 1.4."""
    import diffusers

    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    schedule = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    schedule |= {"beta_schedule": "scaled_linear", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    (folder / "scheduler").mkdir()
    described = schedule | {"prediction_type": prediction}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(described))


def write_clip(folder):
    """The scorer."""
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    write_tokenizer(folder)


def write_photograph(path, seed):
    """Noise in four colours, wider than high."""
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((24, 18), Image.Resampling.NEAREST).save(path, "JPEG", quality=95)


def write_celeba(folder, people, each):
    """CelebA in small: person k has photographs k, k + people, …; attribute j of photograph n is n // 2**j odd."""
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, people * each + 1)]
    columns = ["5_o_Clock_Shadow", *reversed(LABELS.values())]
    attributes, persons = [f"{len(names)}", " ".join(columns) + " "], []
    for number, name in enumerate(names, start=1):
        write_photograph(folder / "img_align_celeba" / name, number)
        has = {attribute: number // 2**place % 2 for place, attribute in enumerate(LABELS.values())}
        attributes.append(f"{name} " + "  ".join("1" if has.get(column) else "-1" for column in columns))
        persons.append(f"{name} {(number - 1) % people + 1}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (folder / "identity_CelebA.txt").write_text("\n".join(persons) + "\n")


def write_imagenette(folder, each=6):
    """Imagenette in small."""
    for place, name in enumerate(CLASSES):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(each):
            write_photograph(folder / "train" / name / f"{name}_{number}.JPEG", 1000 * place + number)


def write_all(folder):
    """Models and photographs, each in a folder of its own."""
    write_model(folder / "model")
    write_clip(folder / "clip")
    write_celeba(folder / "celeba", PEOPLE, EACH)
    write_imagenette(folder / "imagenette")


def settings(there, data, **others):
    """What makes a zoo small; ``data`` is the folder of the photographs."""
    models = {"model": there / "model", "clip": there / "clip", "data": there / data}
    short = {"resolution": 16, "samples": 2, "prompts": "a cat|b", "sampling_steps": 2, "steps": 4, "cohort": 2}
    return models | short | ({"images": 3} if data == "celeba" else {}) | others
