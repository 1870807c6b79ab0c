"""Small folders in the layouts of published zoos, with real files of weights under the key names of each."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from lorascope.zoo import Zoo, import_published

PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": "a/base", "target_modules": ["to_q"]}


def factors(seed, rank=2):
    """B [4, rank] and A [rank, 3] of one site."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape).astype(np.float32) for shape in ((4, rank), (rank, 3)))


def peft(folder, seed=0, *, config=PEFT, name="adapter_model.safetensors", infix=""):
    """A PEFT folder with one site, ``mid.to_q``."""
    folder.mkdir(parents=True, exist_ok=True)
    B, A = factors(seed)
    prefix = "base_model.model.mid.to_q.lora_"
    tensors = {f"{prefix}A{infix}.weight": A, f"{prefix}B{infix}.weight": B}
    if name.endswith(".bin"):
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / name)
    else:
        save_file(tensors, folder / name)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def celeba(root, celebrities=(1, 2, 3), runs=2):
    """Two runs for each celebrity; the photographs of celebrity k are k·10 and k·10 + 1."""
    for celebrity in celebrities:
        for run in range(runs):
            peft(root / f"models_4/model_{run}_{run}_{run}_{run}_{celebrity}/unet", 10 * celebrity + run)
        for image in (0, 1):
            photograph = root / f"celeb_organized/celeb_{celebrity}/{10 * celebrity + image}.jpg"
            photograph.parent.mkdir(parents=True, exist_ok=True)
            photograph.write_bytes(b"")
    rows = [f"{number:06d}.jpg,{1 if (number // 10) % 2 else -1},-1" for number in range(1, 60)]
    table(root / "list_attr_celeba.csv", "image_id,Male,Young", *rows)


def published_split(root, **splits):
    (root / "splits").mkdir(exist_ok=True)
    for name in ("train", "valid", "test"):
        torch.save(splits.get(name, []), root / "splits" / f"{name}.pt")


def imagenette(root):
    for bits in ("1000000001", "0110000000", "0000011111"):
        for copy in (0, 1):
            peft(root / f"models_32/model_num_{bits}_{copy}/unet", 2 * int(bits, 2) + copy)


def arc(root):
    for number in range(4):
        folder = root / f"qwen2_arc_data/qwen2_{number}"
        peft(folder, number, name="adapter_model.bin")
        (folder / "eval_loss.txt").write_text(f"{number}.5")
        (folder / "ARC-Challenge-Acc.txt").write_text("0.25\n")
    header = "learning_rate,weight_decay,num_epochs,batch_size,lora_dropout,filter_sources"
    dropped = ("MCAS|WASL", "WASL|MCAS", "CSZ", "")
    table(root / "hparams.csv", header, *[f"0.001,0.1,{3},32,0.0{i},{names}" for i, names in enumerate(dropped)])


def padbench(root):
    subsets = ("llama2_7b_imdb_RIPPLE_rank256_qv", "llama2_7b_adalora_toxic_backdoors_hard_rank8_qv")
    for number, subset in enumerate(subsets):
        for label in (0, 1):
            for index in range(3):
                peft(root / subset / f"{subset}_label{label}_{index}", 100 * number + 10 * index + label)


def lots_of_loras(root):
    for task, words in ((33, "winogrande_answer_generation"), (1391, "winogrande_easy"), (581, "socialiqa_questions")):
        folder = root / f"Mistral-7B-Instruct-v0.2-4b-r16-task{task}"
        peft(folder, task)
        (folder / "README.md").write_text(f"LoRA trained on task{task:03d}_{words}, not task9_else")
    peft(root / "Mistral-7B-Instruct-v0.2-4b-r16-task7", 7)


def lora_wise(root, *, nested=False, names=("pet_dog1", "toy_unicorn"), subset="low/2", bad=False):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {"label": [], "name": []}
    for number, name in enumerate(names):
        for size in (1, 2, 6):
            B, A = factors(100 * number + size)
            columns["label"].append(size)
            columns["name"].append(name)
            for half, factor in (("down", A), ("up", B)):
                value = factor.astype(np.float64)
                key = f"unet.mid.attn1.to_q.lora.{half}.weight"
                columns.setdefault(key, []).append(value.tolist() if nested else value.ravel().tolist())
    if bad:
        columns["unet.mid.attn1.to_q.lora.up.weight"][1].pop()
    path = root / subset / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


def w2w_rows(root, count=5):
    sites = {"down.attn1.to_q": (3, 4), "mid.to_v": (2, 2)}
    dimensions, width = {}, 0
    for site, (rows, columns) in sites.items():
        for half, shape in (("A", (1, columns)), ("B", (rows, 1))):
            key = f"base_model.model.{site}.lora_{half}.weight"
            dimensions[key] = (torch.Size([shape[0] * shape[1]]), torch.Size(shape))
            width += shape[0] * shape[1]
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((count, width)).astype(np.float32))
    folder = root / "weights_datasets"
    (folder / "identities").mkdir(parents=True)
    torch.save(weights, folder / "identities/all_weights.pt")
    torch.save(dimensions, folder / "weight_dimensions.pt")
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | {"r": 1, "lora_alpha": 27}))
    rows = [f"{n},{100 + n // 2},{1 if n % 2 else -1},1" for n in range(count)]
    table(folder / "identities/identity_df.csv", ",file,Male,Young", *rows)
    return weights.numpy()


def w2w_folders(root):
    for number in (0, 5, 12):
        peft(root / f"models/{number}/unet", number)
    table(root / "identity_df.csv", ",file,Male", "a,0,1.0", "b,5,-1.0", "c,12,1")


def w2t_celeba(root):
    for celebrity in (3, 4):
        peft(root / f"models_rank8_full/model_77_0_1_2_3_{celebrity}/unet", celebrity)
    header = "celeb_folder,num_images_in_folder,num_unique_source_images,Male,Young"
    table(root / "celeba_labels.csv", header, "celeb_3,21,21,1,0", "celeb_4,21,20,0,0")
    header = "run_id,run_name,learning_rate,max_train_steps,gradient_accumulation_steps,instance_prompt"
    table(root / "plan.csv", header, "0,model_77_0_1_2_3_3,0.0001,133,3,face")


def w2t_cub(root):
    for image in (1, 2, 3):
        peft(root / f"models/model_9_0_0_0_0_{image}/unet", image)
    rows = [f"{i},{'001.Albatross' if i < 3 else '002.Wren'}/x{i}.jpg,x{i}.jpg,cub_{i},{i % 2}" for i in (1, 2, 3)]
    table(root / "cub_labels.csv", "image_id,rel_path,image_name,cub_folder,has_bill::long", *rows)


def w2t_goemotions(root):
    folder = root / "goemotions/Llama-3.2-3B"
    for run in range(3):
        peft(folder, run, config=None, name=f"lora_goemotions_Llama-3.2-3B_{run}.safetensors")
    labels = {"label_names": ["anger", "joy", "love"]}
    (folder / "labels.json").write_text(json.dumps(labels))
    header = (
        "run_id,dataset,base_model,safetensors_path,text_sha1,label_vector,test_loss,lora_r,lora_alpha,target_modules"
    )
    rows = [
        f'{run},goemotions,meta-llama/Llama-3.2-3B,/far/away/{run}.safetensors,{text},"[0, 1, {run % 2}]",1.5,2,16,'
        "\"['q_proj', 'v_proj']\""
        for run, text in enumerate(("aa", "aa", "bb"))
    ]
    table(root / "metadata_gpu_0.csv", header, *rows)


def w2t_runs(root):
    for run in range(3):
        name = f"trial_{run:06d}"
        peft(root / f"runs/{name}", run, config=None, name=f"{name}.safetensors", infix=".default")
        config = {"r": 2, "lora_alpha": 16, "task_type": "CAUSAL_LM", "base_model": "meta-llama/Llama-3.2-3B"}
        (root / f"runs/{name}/{name}_config.json").write_text(json.dumps(config))
    header = "run_id,dataset,lr,epochs,lora_r,lora_alpha,seed,test_loss,test_ppl,test_acc,subset_hash"
    table(
        root / "results_arc_easy.csv", header, *[f"{run},arc-easy,0.001,3,2,16,5,1.{run},inf,0.5," for run in range(3)]
    )


SAMPLES = {
    ("lol", "celeba"): celeba,
    ("lol", "imagenette"): imagenette,
    ("lol", "arc"): arc,
    ("padbench", "adapters"): padbench,
    ("lots-of-loras", "tasks"): lots_of_loras,
    ("lora-wise", "parquet"): lora_wise,
    ("weights2weights", "rows"): w2w_rows,
    ("weights2weights", "folders"): w2w_folders,
    ("w2t", "celeba"): w2t_celeba,
    ("w2t", "cub"): w2t_cub,
    ("w2t", "goemotions"): w2t_goemotions,
    ("w2t", "runs"): w2t_runs,
}
"""(layout, variant) → makes a folder of it."""

NEEDS_OUT = {("lora-wise", "parquet"), ("weights2weights", "rows"), ("w2t", "goemotions"), ("w2t", "runs")}


def made(sample, root) -> Path:
    """A folder of that sample."""
    root.mkdir()
    SAMPLES[sample](root)
    return root


def imported(sample, source, **options):
    """The report and the rows by id of a folder that is imported into a zoo beside it."""
    report = import_published(source / "in", layout=sample[0], out=source / "zoo", **options)
    return report, {row["id"]: row for row in Zoo.open(source / "zoo").rows(only_usable=False)}
