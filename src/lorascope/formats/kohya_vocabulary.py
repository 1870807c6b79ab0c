"""The module paths of known image models, as templates: what un-flattening a kohya name is done with.

A template is a module path in which ``#`` stands for a number and ``{a,b}`` for one of the words; ``expanded`` spells
the words out. A family is one way of one library to name the layers of one kind of model.

Source: the module trees of https://github.com/huggingface/diffusers and https://github.com/huggingface/transformers;
https://github.com/CompVis/stable-diffusion and https://github.com/Stability-AI/generative-models (``LDM``);
https://github.com/black-forest-labs/flux (``FLUX``); https://github.com/Stability-AI/sd3.5 (``SD3``);
https://github.com/Wan-Video/Wan2.1 (``WAN``); https://github.com/Tencent/HunyuanVideo (``HUNYUAN``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_BLOCK = (
    "{norm,proj_in,proj_out,transformer_blocks.#.{norm1,norm2,norm3,{attn1,attn2}.{to_q,to_k,to_v,to_out.0},"
    "ff.net.{0.proj,2}}}"
)
_ATTENTION = (
    "{to_q,to_k,to_v,to_out.0,to_add_out,add_q_proj,add_k_proj,add_v_proj,norm_q,norm_k,norm_added_q,norm_added_k}"
)
_FLUX_STREAM = "{img,txt}_{attn.{qkv,proj,norm.{query_norm,key_norm}},mlp.{0,2},mod.lin}"

UNET = (
    "{conv_in,conv_out,conv_norm_out,{time,add}_embedding.{linear_1,linear_2}}",
    "{down_blocks.#,mid_block,up_blocks.#}.attentions.#." + _BLOCK,
    "{down_blocks.#,mid_block,up_blocks.#}.resnets.#.{norm1,conv1,time_emb_proj,norm2,conv2,conv_shortcut}",
    "{down_blocks.#.downsamplers,up_blocks.#.upsamplers}.#.conv",
)
LDM = (
    "{time_embed.{0,2},label_emb.0.{0,2},out.{0,2}}",
    "{input_blocks.#,middle_block,output_blocks.#}.#." + _BLOCK,
    "{input_blocks.#,middle_block,output_blocks.#}.#."
    "{in_layers.{0,2},emb_layers.1,out_layers.{0,3},skip_connection,op,conv}",
    "input_blocks.0.0",
)
DIFFUSERS_DIT = (
    "{x_embedder,context_embedder,proj_out,pos_embed.proj,norm_out.{linear,norm}}",
    "time_text_embed.{timestep_embedder,guidance_embedder,text_embedder}.{linear_1,linear_2}",
    "transformer_blocks.#.{{attn,attn2}." + _ATTENTION + ",{ff,ff_context}.net.{0.proj,2},"
    "{norm1,norm1_context}.{linear,norm},norm2,norm2_context}",
    "single_transformer_blocks.#.{attn." + _ATTENTION + ",norm.{linear,norm},proj_mlp,proj_out}",
)
FLUX = (
    "{img_in,txt_in,{time_in,vector_in,guidance_in}.{in_layer,out_layer},final_layer.{linear,adaLN_modulation.1}}",
    "double_blocks.#." + _FLUX_STREAM,
    "single_blocks.#.{linear1,linear2,modulation.lin,norm.{query_norm,key_norm}}",
)
SD3 = (
    "{x_embedder.proj,context_embedder,{t_embedder,y_embedder}.mlp.{0,2},final_layer.{linear,adaLN_modulation.1}}",
    "joint_blocks.#.{x_block,context_block}.{{attn,attn2}.{qkv,proj,ln_q,ln_k},mlp.{fc1,fc2},adaLN_modulation.1}",
)
WAN = (
    "{patch_embedding,head.head,{text_embedding,time_embedding}.{0,2},time_projection.1,img_emb.proj.{0,1,3,4}}",
    "blocks.#.{{self_attn,cross_attn}.{q,k,v,o,k_img,v_img,norm_q,norm_k,norm_k_img},ffn.{0,2},norm1,norm2,norm3}",
)
HUNYUAN = (
    "{img_in.proj,{time_in,guidance_in}.mlp.{0,2},vector_in.{in_layer,out_layer}}",
    "double_blocks.#.{img,txt}_{attn_{qkv,proj,q_norm,k_norm},mlp.{fc1,fc2},mod.linear}",
    "single_blocks.#.{linear1,linear2,modulation.linear,q_norm,k_norm}",
)
CLIP = (
    "text_model.{final_layer_norm,embeddings.{token_embedding,position_embedding}}",
    "text_model.encoder.layers.#.{self_attn.{q_proj,k_proj,v_proj,out_proj},mlp.{fc1,fc2},layer_norm1,layer_norm2}",
    "text_projection",
)
T5 = (
    "{shared,encoder.{embed_tokens,final_layer_norm}}",
    "encoder.block.#.layer.#.{layer_norm,SelfAttention.{q,k,v,o,relative_attention_bias},"
    "DenseReluDense.{wi,wi_0,wi_1,wo}}",
)

DENOISERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "unet": (UNET, "unet"),
    "ldm": (LDM, "unet"),
    "flux": (FLUX, "transformer"),
    "diffusers-dit": (DIFFUSERS_DIT, "transformer"),
    "sd3": (SD3, "transformer"),
    "hunyuan": (HUNYUAN, "transformer"),
    "wan": (WAN, "transformer"),
}
"""Family → templates, and the component of a pipeline that such a model is; the first of two that fit alike wins."""

TEXT_ENCODERS: Mapping[str, tuple[str, ...]] = {"clip": CLIP, "t5": T5}


def expanded(template: str) -> Iterator[str]:
    """The template with every ``{a,b}`` spelled out.

    >>> list(expanded("mid.{a,b.{c,d}}.#"))
    ['mid.a.#', 'mid.b.c.#', 'mid.b.d.#']
    """
    start = template.find("{")
    if start < 0:
        yield template
        return
    words, depth, last = list[str](), 0, start + 1
    for place in range(start, len(template)):
        letter = template[place]
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 1:
            words.append(template[last:place])
            last = place + 1
        elif letter == "}" and depth == 0:
            words.append(template[last:place])
            for word in words:
                yield from expanded(template[:start] + word + template[place + 1 :])
            return
    raise ValueError(f"a brace is not closed in {template!r}")


def diffusers_path(path: str, layers_per_block: int = 2) -> str | None:
    """The path in diffusers' U-Net of a layer of the LDM U-Net (SD 1, SD 2, SDXL); None where there is none.

    >>> diffusers_path("input_blocks.4.1.transformer_blocks.0.attn1.to_q")
    'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
    >>> diffusers_path("output_blocks.2.2.conv"), diffusers_path("label_emb.0.2")
    ('up_blocks.0.upsamplers.0.conv', 'add_embedding.linear_2')
    """
    if path in _LDM_OUTSIDE:
        return _LDM_OUTSIDE[path]
    words = path.split(".")
    if words[0] == "middle_block" and len(words) > 2:
        return _inside("mid_block", words[1], words[2:], {"0": "0", "1": "0", "2": "1"})
    if len(words) < 4 or not (words[1].isdecimal() and words[2].isdecimal()):
        return None
    step = layers_per_block + 1
    number, tail = int(words[1]), words[3:]
    if words[0] == "input_blocks" and number > 0:
        block, layer = divmod(number - 1, step)
        if tail == ["op"]:
            return f"down_blocks.{block}.downsamplers.0.conv" if (words[2], layer) == ("0", layers_per_block) else None
        name = f"down_blocks.{block}"
    elif words[0] == "output_blocks":
        block, layer = divmod(number, step)
        if tail == ["conv"]:
            return (
                f"up_blocks.{block}.upsamplers.0.conv" if words[2] in ("1", "2") and layer == layers_per_block else None
            )
        name = f"up_blocks.{block}"
    else:
        return None
    return _inside(name, words[2], tail, {"0": str(layer), "1": str(layer)})


_LDM_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _inside(block: str, index: str, tail: list[str], layers: Mapping[str, str]) -> str | None:
    rest = ".".join(tail)
    if index not in layers:
        return None
    is_resnet = rest in _LDM_RESNET
    if is_resnet != (index != "1"):  # the middle layer of a block is its attention
        return None
    return f"{block}.{'resnets' if is_resnet else 'attentions'}.{layers[index]}.{_LDM_RESNET.get(rest, rest)}"
