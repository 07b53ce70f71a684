from __future__ import annotations

import pytest
import torch

from satrap.models import Named, Padded

WIDTHS = {"a": 1, "b": 2, "c": 1}


def packed() -> Named:
    return Named.packed(torch.arange(12.0).reshape(3, 4), WIDTHS)


def test_packed_names_give_their_columns() -> None:
    n = packed()
    assert list(n) == ["a", "b", "c"]
    assert n["b"].tolist() == [[1, 2], [5, 6], [9, 10]]
    assert n.widths == WIDTHS


def test_cat_of_all_names_in_order_is_the_packed_tensor_itself() -> None:
    # A copy of [B, Σ] every step is what packing exists to avoid.
    flat = torch.zeros(3, 4)
    n = Named.packed(flat, WIDTHS)
    assert n.cat() is flat
    assert n.cat(["a", "b", "c"]) is flat


def test_cat_of_other_names_follows_the_order_asked() -> None:
    assert packed().cat(["c", "a"]).tolist() == [[3, 0], [7, 4], [11, 8]]


def test_separate_and_packed_give_the_same_tensors() -> None:
    n = packed()
    separate = Named(dict(n))
    assert torch.equal(separate.cat(), n.cat())
    assert separate.widths == n.widths
    assert all(torch.equal(separate[k], n[k]) for k in n)


def test_stack_is_a_view_of_the_packed_tensor() -> None:
    flat = torch.arange(12.0).reshape(2, 6)
    stacked = Named.packed(flat, {"a": 2, "b": 2, "c": 2}).stack()
    assert stacked.shape == (2, 3, 2)
    assert stacked.data_ptr() == flat.data_ptr()
    assert stacked[1, 2].tolist() == [10, 11]


def test_stack_of_unequal_widths_is_refused_with_the_widths() -> None:
    with pytest.raises(ValueError, match=r"'b': 2"):
        packed().stack()


def test_stack_of_chosen_names_needs_only_their_widths_equal() -> None:
    assert packed().stack(["a", "c"]).tolist() == [[[0], [3]], [[4], [7]], [[8], [11]]]


def test_gradient_of_every_name_is_one_split_backward() -> None:
    # One slice a name would cost a zero-filled [B, Σ] a name on the way back.
    leaf = torch.ones(3, 4, requires_grad=True)
    n = Named.packed(leaf, WIDTHS)
    nodes = {n[k].grad_fn for k in n}
    assert len(nodes) == 1
    assert "Split" in type(nodes.pop()).__name__
    sum((i + 1) * n[k].sum() for i, k in enumerate(n)).backward()
    assert leaf.grad is not None
    assert leaf.grad[0].tolist() == [1, 2, 2, 3]


def test_names_not_used_get_zero_gradient() -> None:
    leaf = torch.ones(3, 4, requires_grad=True)
    Named.packed(leaf, WIDTHS)["b"].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[0].tolist() == [0, 1, 1, 0]


def test_unknown_name_is_a_key_error_with_the_nearest_name() -> None:
    n = Named({"user": torch.zeros(1, 2)})
    with pytest.raises(KeyError, match="did you mean 'user'"):
        n["usr"]
    assert n.get("usr") is None
    assert "usr" not in n


def test_widths_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Named.packed(torch.zeros(3, 5), WIDTHS)


def test_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="both as columns and as sequences"):
        Named.packed(torch.zeros(1, 4), WIDTHS, {"b": Padded(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))})


def test_no_columns_give_an_empty_tensor_of_the_batch() -> None:
    assert Named.packed(torch.zeros(7, 0), {}).cat().shape == (7, 0)


def history(empty_padding: float = 0.0) -> Padded:
    values = torch.full((2, 3, 2), empty_padding)
    values[0, 0], values[0, 1] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    return Padded(values.requires_grad_(), torch.tensor([[True, True, False], [False, False, False]]))


def test_masked_mean_divides_by_the_ids_not_by_the_length() -> None:
    assert history().mean().tolist() == [[2, 3], [0, 0]]


def test_padding_that_holds_nan_reaches_neither_mean_nor_gradient() -> None:
    # A product with the mask would turn NaN padding into a NaN mean.
    s = history(float("nan"))
    s.mean().sum().backward()
    assert s.mean().tolist() == [[2, 3], [0, 0]]
    assert s.values.grad is not None
    assert s.values.grad.tolist() == [[[0.5, 0.5], [0.5, 0.5], [0, 0]], [[0, 0]] * 3]


@pytest.mark.parametrize("form", ["packed", "separate"])
def test_pooled_puts_sequence_means_behind_the_columns(form: str) -> None:
    flat = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    s = history()
    n = Named.packed(flat, {"a": 2}, {"h": s}) if form == "packed" else Named({"h": s, "a": flat})
    pooled = n.pooled()
    assert list(pooled) == ["a", "h"]
    assert pooled.cat().tolist() == [[1, 2, 2, 3], [3, 4, 0, 0]]
    assert pooled.stack().shape == (2, 2, 2)
    assert set(n.sequences()) == {"h"}
    assert n["h"] is s


def test_pooled_without_sequences_is_the_same_object() -> None:
    n = packed()
    assert n.pooled() is n


def test_cat_of_a_sequence_says_what_to_use_instead() -> None:
    with pytest.raises(TypeError, match=r"pooled\(\)"):
        Named({"h": history()}).cat(["h"])
