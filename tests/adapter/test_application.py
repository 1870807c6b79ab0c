"""An adapter goes into a PyTorch model and comes out again bit for bit."""

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError


def factors(out, in_, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))


def bits(model):
    return {name: (value.data_ptr(), value.clone()) for name, value in model.named_parameters()}


def assert_untouched(model, before):
    for name, value in model.named_parameters():
        pointer, copy = before[name]
        assert value.data_ptr() == pointer and torch.equal(value, copy), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_in_and_out_in_every_dtype(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).to(dtype)
    before = bits(model)
    B, A = factors(3, 4)
    with Adapter({"0": LowRank(B, A, 0.5)}).apply_to(model):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = (before["0.weight"][1].to(wide) + torch.as_tensor(0.5 * B @ A).to(wide)).to(dtype)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(model[0].weight.data, expected, rtol=2 * unit, atol=2 * unit)
        assert model[0].weight.dtype == dtype and isinstance(model[0].weight, torch.nn.Parameter)
    assert_untouched(model, before)


def test_the_outputs_are_those_of_the_update():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    adapter = Adapter({"0": LowRank(*factors(3, 4), -2.0)})
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = model(x)
    with adapter.apply_to(model):
        moved = model(x)
    torch.testing.assert_close(moved - base, torch.as_tensor(adapter["0"].apply(x.numpy())))


def test_applications_nest():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    before = bits(model)
    one, two = (Adapter({"0": LowRank(*factors(3, 4, seed=seed))}) for seed in (0, 1))
    both = sum(adapter["0"].delta_weight(np.float64) for adapter in (one, two))
    with one.apply_to(model), two.apply_to(model):
        found = (model[0].weight.detach() - before["0.weight"][1].detach()).numpy()
        np.testing.assert_allclose(found, both, atol=1e-14)
    assert_untouched(model, before)


def test_taking_out_twice_does_nothing_and_errors_inside_take_out():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = bits(model)
    adapter = Adapter({"0": LowRank(*factors(3, 4))})
    application = adapter.apply_to(model)
    application.remove()
    application.remove()
    assert_untouched(model, before)
    with pytest.raises(RuntimeError, match="inside"), adapter.apply_to(model):
        raise RuntimeError("inside")
    assert_untouched(model, before)


def test_taking_out_in_the_wrong_order_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = bits(model)
    adapter = Adapter({"0": LowRank(*factors(3, 4))})
    first, second = adapter.apply_to(model), adapter.apply_to(model)
    with pytest.raises(AdapterError, match=r"0: .*put in after this one"):
        first.remove()
    second.remove()
    first.remove()
    assert_untouched(model, before)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("out", "in_"), [(6, 4), (5, 5)])
def test_conv1d_of_gpt2_stores_its_weight_transposed(is_transposed, out, in_):
    model = torch.nn.Sequential(Conv1D(out, in_)).double()
    before = bits(model)
    update = LowRank(*factors(out, in_), is_transposed=is_transposed)
    x = torch.randn(3, in_, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = model(x)
    with Adapter({"0": update}).apply_to(model):
        torch.testing.assert_close(model(x) - base, torch.as_tensor(update.apply(x.numpy())))
    assert_untouched(model, before)


def test_convolutions():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 5, 3)).double()
    before = bits(model)
    update = LowRank(*factors(5, 18), layer="conv2d", kernel=(2, 3, 3))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patches = torch.nn.functional.unfold(x, 3)
    base = model(x)
    with Adapter({"0": update}).apply_to(model):
        expected = torch.as_tensor(update.apply(patches.mT.numpy())).mT.reshape(1, 5, 4, 4)
        torch.testing.assert_close(model(x) - base, expected)
    assert_untouched(model, before)


def test_embeddings():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4)).double()
    before = bits(model)
    update = LowRank(*factors(4, 10), layer="embedding", is_transposed=True)
    tokens = torch.tensor([1, 7])
    base = model(tokens)
    with Adapter({"0": update}).apply_to(model):
        expected = torch.as_tensor(update.apply(np.eye(10)[[1, 7]]))
        torch.testing.assert_close(model(tokens) - base, expected)
    assert_untouched(model, before)


def test_components_are_dropped_from_the_site_names():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = bits(model)
    with Adapter({"unet.0": LowRank(*factors(3, 4))}).apply_to(model, component="unet"):
        assert not torch.equal(model[0].weight, before["0.weight"][1])
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"1": LowRank(np.full((2, 1), np.nan), np.ones((1, 3)))}, "1: non-finite value in B"),
        ({"1": LowRank(np.ones((3, 1)), np.ones((1, 3)))}, r"1: .*does not fit.*\[3, 3\], found \[2, 3\]"),
        ({"nowhere": LowRank(np.ones((2, 1)), np.ones((1, 3)))}, "nowhere: the model has no such layer"),
        ({"2": LowRank(np.ones((2, 1)), np.ones((1, 3)))}, "2: the model has no such layer .*found ReLU"),
    ],
)
def test_an_adapter_that_fails_leaves_the_model_unchanged(second, message):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2), torch.nn.ReLU())
    before = bits(model)
    with pytest.raises(AdapterError, match=message):
        Adapter({"0": LowRank(*factors(3, 4)), **second}).apply_to(model)
    assert_untouched(model, before)


def test_parts_of_fused_weights_are_changed_alone_and_put_back() -> None:
    model = torch.nn.Module()
    model.qkv = torch.nn.Linear(3, 6)
    model.experts = torch.nn.Module()
    model.experts.up = torch.nn.Parameter(torch.zeros(2, 4, 3))
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    rows, expert = LowRank(np.ones((2, 1)), np.ones((1, 3))), LowRank(np.ones((4, 1)), np.ones((1, 3)))
    adapter = Adapter({"qkv[0:2]": rows, "qkv[4:6]": rows, "experts.up[1]": expert})
    with adapter.apply_to(model):
        change = model.qkv.weight.data - before["qkv.weight"]
        assert change.sum(dim=1).round().tolist() == [3.0, 3.0, 0.0, 0.0, 3.0, 3.0]
        assert model.experts.up.sum(dim=(1, 2)).tolist() == [0.0, 12.0]
    assert all(
        parameter.data is before[name] or torch.equal(parameter.data, before[name])
        for name, parameter in model.named_parameters()
    )
    assert model.qkv.weight.data_ptr() == before["qkv.weight"].data_ptr()
    with pytest.raises(AdapterError, match="no such part"):
        Adapter({"qkv[5:7]": rows}).apply_to(model)


def test_a_bias_changes_with_the_weight() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=True))
    before = model[0].bias.data.clone()
    update = LowRank(np.ones((4, 1)), np.ones((1, 3)), scale=0.5, bias=np.array([1.0, 2.0, 3.0, 4.0]))
    with Adapter({"0": update}).apply_to(model):
        assert torch.allclose(model[0].bias - before, torch.tensor([0.5, 1.0, 1.5, 2.0]))
    assert torch.equal(model[0].bias.data, before)
    with pytest.raises(AdapterError, match="bias that the layer has not"):
        Adapter({"0": update}).apply_to(torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False)))


def test_what_nothing_can_be_added_to_is_refused() -> None:
    update = LowRank(np.ones((4, 1)), np.ones((1, 3)))
    quantised = torch.nn.Sequential(torch.nn.Linear(3, 4))
    quantised[0].weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    parametrised = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4)))
    with torch.device("meta"):
        absent = torch.nn.Sequential(torch.nn.Linear(3, 4))
    for model in (quantised, parametrised, absent):
        with pytest.raises(AdapterError, match="nothing can be added"):
            Adapter({"0": update}).apply_to(model)
    half = torch.nn.Sequential(torch.nn.Linear(3, 4)).half()
    with pytest.raises(AdapterError, match="beyond the range"):
        Adapter({"0": LowRank(update.B, update.A, scale=1e8)}).apply_to(half)
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.raises(AdapterError, match="two sites of the adapter are one weight"):
        Adapter({"0": update, "unet.0": update}).apply_to(plain, component="unet")


def test_a_linear_layer_beside_conv1d_is_not_transposed() -> None:
    """PEFT saves ``fan_in_fan_out`` once for both, and means Conv1D."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    before = model[0].weight.data.clone()
    rng = np.random.default_rng(0)
    update = LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 4)), is_transposed=True)
    with Adapter({"0": update}).apply_to(model):
        change = (model[0].weight.data - before).numpy()
    np.testing.assert_allclose(change, update.B @ update.A, rtol=1e-5, atol=1e-6)


class Holder(torch.nn.Module):
    """Modules under the names given."""

    def __init__(self, **modules: torch.nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def test_a_wrapper_around_the_model_may_be_there_or_not_and_another_tower_is_another_place() -> None:
    def model() -> torch.nn.Module:
        return Holder(layers=torch.nn.ModuleList([Holder(q=torch.nn.Linear(4, 3, bias=False))]))

    update = LowRank(*factors(3, 4))
    expected = torch.as_tensor(update.delta_weight(np.float32))
    for whole, site in ((model(), "model.layers.0.q"), (Holder(model=model()), "layers.0.q")):
        linear = next(one for one in whole.modules() if isinstance(one, torch.nn.Linear))
        before = linear.weight.data
        with Adapter({site: update}).apply_to(whole):
            torch.testing.assert_close(linear.weight.data - before, expected)
    for whole, site in ((model(), "vision_tower.layers.0.q"), (Holder(vision_tower=model()), "layers.0.q")):
        with pytest.raises(AdapterError, match="the model has no such layer"):
            Adapter({site: update}).apply_to(whole)
    both = Holder(model=model(), bert=model())
    with pytest.raises(AdapterError, match="several layers of the model fit"):
        Adapter({"layers.0.q": update}).apply_to(both)


@pytest.mark.parametrize("is_flagged", [False, True])
@pytest.mark.parametrize("layout", ["open", "fixed", "stated"])
def test_a_square_expert_is_stored_as_its_module_says(layout, is_flagged) -> None:
    model = Holder(experts=torch.nn.Module())
    model.experts.is_transposed = is_flagged
    model.experts.down_proj = torch.nn.Parameter(torch.zeros(2, 2, 2))
    update = LowRank(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]), layout=layout)
    with Adapter({"experts.down_proj[1]": update}).apply_to(model):
        is_turned = is_flagged and layout != "fixed"
        assert model.experts.down_proj[1].tolist() == ([[1, 2], [10, 20]] if is_turned else [[1, 10], [2, 20]])
    model.experts.down_proj = torch.nn.Parameter(torch.zeros(2, 2, 3))
    wide = LowRank(np.ones((3, 1)), np.ones((1, 2)), layout=layout)
    if layout == "open" or (layout == "stated" and is_flagged):
        with Adapter({"experts.down_proj[1]": wide}).apply_to(model):
            assert model.experts.down_proj[1].tolist() == [[1, 1, 1], [1, 1, 1]]
    else:
        with pytest.raises(AdapterError, match="does not fit the weight of the model"):
            Adapter({"experts.down_proj[1]": wide}).apply_to(model)


def test_a_version_that_may_have_asked_the_module_or_not_is_in_doubt() -> None:
    model = Holder(experts=torch.nn.Module())
    model.experts.down_proj = torch.nn.Parameter(torch.zeros(2, 2, 2))
    adapter = Adapter(
        {"experts.down_proj[0]": LowRank(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]), layout="unknown")}
    )
    with pytest.raises(AdapterError, match="fits either way round"):
        adapter.apply_to(model)
    with pytest.raises(AdapterError, match="no such layout"):
        adapter.apply_to(model, layout="sideways")  # type: ignore[arg-type]  # a wrong word is meant
    with adapter.apply_to(model, layout="in-out"):
        assert model.experts.down_proj[0].tolist() == [[1, 2], [10, 20]]
    model.experts.is_transposed = True  # [in, out] whether it was asked or not
    with adapter.apply_to(model):
        assert model.experts.down_proj[0].tolist() == [[1, 2], [10, 20]]


@pytest.mark.parametrize("is_conv1d", [False, True])
def test_a_layer_that_peft_has_wrapped_is_the_layer_itself(is_conv1d: bool) -> None:
    peft = pytest.importorskip("peft")
    layer = Conv1D(3, 3) if is_conv1d else torch.nn.Linear(3, 3)
    config = peft.LoraConfig(r=1, target_modules=["q"], fan_in_fan_out=is_conv1d)
    wrapped = peft.get_peft_model(Holder(q=layer), config)
    update = LowRank(*factors(3, 3))
    before = layer.weight.data
    with Adapter({"q": update}).apply_to(wrapped):
        change = layer.weight.data - before
    delta = torch.as_tensor(update.delta_weight(np.float32))
    torch.testing.assert_close(change, delta.T if is_conv1d else delta)


def test_a_tied_head_moves_with_the_embedding_and_comes_back() -> None:
    model = Holder(embed_tokens=torch.nn.Embedding(5, 2), lm_head=torch.nn.Linear(2, 5, bias=False))
    model.lm_head.weight = model.embed_tokens.weight
    before = model.lm_head.weight.data.clone()
    update = LowRank(*factors(2, 5), layer="embedding", is_transposed=True)
    with Adapter({"embed_tokens": update}).apply_to(model):
        assert model.lm_head.weight is model.embed_tokens.weight
        torch.testing.assert_close(model.lm_head.weight.data - before, torch.as_tensor(update.delta_weight(np.float32)))
    assert torch.equal(model.lm_head.weight.data, before)
    both = Adapter({"embed_tokens": update, "lm_head": LowRank(*factors(5, 2))})
    with pytest.raises(AdapterError, match="two sites of the adapter are one weight"):
        both.apply_to(model)


class OwnLinear(torch.nn.Module):
    """A layer of a class that does not tell how its weight is stored."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size, size))


def test_an_answer_holds_for_a_layer_of_any_class_that_does_not_tell() -> None:
    update = LowRank(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]))
    model = Holder(proj=OwnLinear(2))
    for layout, expected in (("out-in", [[1, 10], [2, 20]]), ("in-out", [[1, 2], [10, 20]])):
        with Adapter({"proj": update}).apply_to(model, layout=layout):
            assert model.proj.weight.tolist() == expected


def test_an_answer_that_contradicts_the_class_of_a_module_is_refused() -> None:
    update = LowRank(*factors(3, 3))
    for module, layout in ((torch.nn.Linear(3, 3), "in-out"), (Conv1D(3, 3), "out-in")):
        with pytest.raises(AdapterError, match="contradicts what is known of the model"):
            Adapter({"q": update}).apply_to(Holder(q=module), layout=layout)
