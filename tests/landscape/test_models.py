"""Loading from each provider, and what is refused."""

import builtins
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peaks_and_gates import cache, models
from peaks_and_gates.errors import HashMismatch, MissingFile, ModelUnavailable, UnknownName
from peaks_and_gates.models import gain_of_bfloat16
from training.tiny_llama import save


@pytest.fixture
def folder(tiny, tmp_path):
    """A model saved to disk, as a reader would have one."""
    target = tmp_path / "model"
    tiny.tokenizer.save_pretrained(target)
    tiny.network.save_pretrained(target)
    return target


def logits(model):
    ids = torch.tensor([model.tokenizer.encode("Which word means this?\nAnswer:")])
    with torch.inference_mode():
        return model.network(ids).logits


def test_a_folder_gives_the_model_that_was_saved_and_a_hash_of_its_weights(tiny, folder):
    loaded, before = models.load(str(folder), dtype=torch.float64, device="cpu"), models.describe(str(folder))
    torch.testing.assert_close(logits(loaded), logits(tiny))
    assert loaded.n_layers == tiny.n_layers == 4
    loaded.network.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    loaded.network.save_pretrained(folder)
    assert models.describe(str(folder)) != before


def test_a_processor_is_asked_how_much_faster_it_multiplies_bfloat16(monkeypatch):
    seconds = {torch.float32: 6.0, torch.bfloat16: 2.0}
    timer = lambda code, globals: Mock(**{"blocked_autorange.return_value.median": seconds[globals["a"].dtype]})
    monkeypatch.setattr(models, "Timer", timer)
    gain_of_bfloat16.cache_clear()
    assert gain_of_bfloat16() == 3.0
    gain_of_bfloat16.cache_clear()


def test_an_adapter_is_merged_and_named(tiny, folder, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)  # at random, so that they do something
    network = get_peft_model(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64), config)
    network.save_pretrained(tmp_path / "adapter")
    adapted = models.load(str(folder), adapter=str(tmp_path / "adapter"), dtype=torch.float64, device="cpu")
    expected = network(torch.tensor([tiny.tokenizer.encode("Which word means this?\nAnswer:")])).logits
    torch.testing.assert_close(logits(adapted), expected.detach(), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(logits(adapted), logits(tiny))
    for file, content, message in ((0, b"{}", "cannot be put on"), (1, b"cut short", "is damaged")):
        (tmp_path / "adapter" / models.ADAPTER[file]).write_bytes(content)
        with pytest.raises(ModelUnavailable, match=message):
            models.load(str(folder), adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_another_base_is_refused_by_the_name_that_peft_writes(tiny, folder, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path / "adapter")
    written = tmp_path / "adapter" / models.ADAPTER[0]
    settings = json.loads(written.read_text())
    same, other = shutil.copytree(folder, tmp_path / "same"), shutil.copytree(folder, tmp_path / "other")
    network = LlamaForCausalLM.from_pretrained(folder)
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1  # equal shapes and names
    network.save_pretrained(other)
    known = {"": other, str(folder): same, "someone/Other@0123": other, "/gone/other/": other}
    for name, base in known.items():  # no name, the same weights elsewhere, the name alone where there are no weights
        written.write_text(json.dumps(settings | {"base_model_name_or_path": name}))
        models.load(str(base), str(tmp_path / "adapter"))
    for name in (str(folder), "tiny-llama", "someone/another"):
        written.write_text(json.dumps(settings | {"base_model_name_or_path": name}))
        with pytest.raises(ModelUnavailable, match=f"was trained on {name}, whose weights are not those of"):
            models.load(str(other), str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False), "logits change by"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "cannot be put on"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(tiny, tmp_path, config, message):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny.tokenizer), tie_word_embeddings=True, **sizes))
    network.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    assert models.load(str(tmp_path / "base")).n_layers == 2  # no file holds a head that is the embedding
    get_peft_model(network, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelUnavailable, match=message) as refusal:
        models.load(str(tmp_path / "base"), str(tmp_path / "adapter"))
    assert "\n" not in str(refusal.value)


def test_no_code_of_a_model_is_run_nor_offered(folder, monkeypatch):
    questions = []
    monkeypatch.setattr(builtins, "input", lambda question: questions.append(question) or "n")
    settings = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}, "model_type": "unheard"}
    (folder / "config.json").write_text(json.dumps(settings | code))
    with pytest.raises(ModelUnavailable, match="custom code"):
        models.load(str(folder))
    assert not questions


def test_a_tokenizer_that_cannot_say_where_its_tokens_are_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ModelUnavailable, match="ByT5Tokenizer does not say"):
        models.load(str(folder))


@pytest.mark.parametrize("shipped", ["tiny-llama", "fine-tuned-0"])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, shipped):
    copying = {"dirs_exist_ok": True, "ignore": shutil.ignore_patterns("card.json")}
    (path,) = shutil.copytree(models.in_checkout(f"weights/smoke/{shipped}"), tmp_path, **copying).glob("*.safetensors")
    (tmp_path / "card.json").write_text('{"license": "mit"}')  # somebody else's
    about, weights = models.metadata(path), load_file(path)
    renamed, broken, *_ = sorted(name for name in weights if "q_proj" in name)
    weights["more"] = weights.pop(renamed)
    weights[broken][0] = torch.nan  # which attention on a CPU does not pass on
    save_file(weights, path, about)
    with pytest.raises(ModelUnavailable, match=r"missing_keys.*q_proj.*unexpected_keys.*more.*not finite.*q_proj"):
        models.load(str(tmp_path))


def test_a_hub_model_is_loaded_at_its_commit_and_without_a_network_one_message_says_so(folder, tmp_path):
    """In a process of its own, which reads a cache laid out as the hub's."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    code = f"""
from peaks_and_gates import models
from peaks_and_gates.errors import ModelUnavailable
assert models.load("someone/tiny@{commit}").n_layers == 4
assert models.describe("someone/tiny@{commit}") == {{"provider": "hub", "repo": "someone/tiny", "revision": "{commit}"}}
for name in ("qwen2.5-0.5b", "someone/other"):
    try: models.load(name)
    except ModelUnavailable as error: print(error)
"""
    variables = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could not be loaded") == done.stdout.count("-p model=FOLDER") == 2


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'smollm2-135m-instruct'"):
        models.load("smollm2-135m-instrct")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(MissingFile, match="safetensors"):
        models.load(str(tmp_path))


def test_another_architecture_is_refused_with_the_place_to_add_it(tiny, tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=300)).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="read_points"):
        models.load(str(tmp_path))


@pytest.mark.parametrize("normed", [False, True])  # as some versions of transformers do, and others
def test_the_last_state_is_what_the_last_block_wrote(tiny, monkeypatch, normed):
    monkeypatch.setattr(tiny.network.config, "tie_last_hidden_states", normed, raising=False)
    written = []
    with tiny.network.model.layers[-1].register_forward_hook(lambda *parts: written.append(parts[-1])):
        states, output = models.residual_stream(tiny, torch.tensor([[5, 6, 7]]))
    assert torch.equal(states[-1], written[0]) and not torch.equal(states[-1], output.last_hidden_state)


def test_a_model_over_two_devices_computes_the_same(tiny, folder, tmp_path):
    """On one machine without GPUs the second device is the disk, from which weights are read when they are needed."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i == 3 else "cpu" for i in range(4)}
    options = {"device_map": places, "offload_folder": tmp_path, "dtype": torch.float64}
    split = LlamaForCausalLM.from_pretrained(folder, **options).eval()
    torch.testing.assert_close(logits(dataclasses.replace(tiny, network=split)), logits(tiny))


@pytest.mark.parametrize(("memory", "expected"), [(1.0, True), (1.2, True), (1.3, False)])
def test_only_a_model_larger_than_a_gpu_is_split(folder, monkeypatch, memory, expected):
    config = LlamaConfig.from_pretrained(folder)
    n_bytes = 4 * LlamaForCausalLM(config).num_parameters()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (memory * n_bytes, memory * n_bytes))
    split = models.device_map(AutoModelForCausalLM, config, torch.float32, torch.device("cuda"))
    assert split == ({"device_map": "auto"} if expected else {})
    assert models.device_map(AutoModelForCausalLM, config, torch.float32, torch.device("cpu")) == {}


def test_rotary_angles_are_not_rounded():
    """A cast of the model would take their float32 frequencies along, and far tokens would turn by another angle."""
    narrow = models.load("tiny-llama", dtype=torch.bfloat16)
    assert narrow.network.dtype == torch.bfloat16 and narrow.network.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_shipped_tiny_model_is_the_one_of_its_command(tmp_path):
    save(tmp_path)
    shipped = load_file(models.in_checkout("weights/smoke/tiny-llama") / "model.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), shipped, rtol=0, atol=0)


def test_a_damaged_shipped_model_is_refused(tmp_path, monkeypatch):
    shutil.copytree(models.in_checkout("weights/smoke/tiny-llama"), tmp_path / "weights/smoke/tiny-llama")
    monkeypatch.setattr(models, "in_checkout", lambda folder: tmp_path / folder)
    (tmp_path / "weights/smoke/tiny-llama/tokenizer.json").write_text("{}")
    with pytest.raises(HashMismatch, match=r"tokenizer\.json"):
        models.load("tiny-llama")


def test_letters_are_those_that_follow_the_colon(tiny):
    for letter, token in zip("ABCD", tiny.letter_tokens.tolist(), strict=True):
        assert tiny.tokenizer.encode(f"Answer: {letter}")[-1] == token
    for ids in ([1, 2, 3], [0]):  # 0: unknown
        with pytest.raises(ModelUnavailable, match="splits the answer letters"):
            _ = dataclasses.replace(tiny, tokenizer=Mock(**{"encode.return_value": ids})).letter_tokens


def test_the_laptop_model_is_unpacked_and_speaks():
    model = models.load("smollm2-135m-instruct", dtype=torch.float32)
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
    assert sum(p.numel() for p in model.network.parameters()) == 134_515_008
    ids = torch.tensor([model.tokenizer.encode("The capital of France is")])
    with torch.inference_mode():
        following = model.network(ids).logits[0, -1].argmax()
    assert model.tokenizer.decode(following) == " Paris"
    # Numbers are read digit by digit; a conversion that loses this rule reads other tokens than the model learned.
    assert len(model.tokenizer.encode("1984")) == 4


def test_a_download_is_checked_stored_and_fetched_again_if_damaged(own_cache, tmp_path, monkeypatch):
    """From a wheel in a folder that pip looks into, without an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/data.txt", "hello")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n")
    right = {"sha256": cache.file_sha256(wheel), "member": "tiny/data.txt"}
    right["member_sha256"] = hashlib.sha256(b"hello").hexdigest()
    fetch = lambda **wrong: cache.package_file("tiny==1.0", **right | wrong)
    with pytest.raises(MissingFile, match="DO NOT MATCH THE HASHES"):
        fetch(sha256="0" * 64)
    with pytest.raises(HashMismatch, match=r"data\.txt"):
        fetch(member_sha256="0" * 64)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]  # nothing that was refused is stored
    path = fetch()
    assert path.read_text() == "hello"
    path.write_text("damaged")
    assert fetch().read_text() == "hello"
    wheel.unlink()
    assert fetch() == path  # stored: neither network nor archive is needed
