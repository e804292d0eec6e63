import pytest

from jaxpt.lowering.convolution import choice
from jaxpt.lowering.convolution.geometry import geometry

FIRST = (32, 5, "VALID", 1, 6)  # LeNet: image, kernel, padding, channels, features
SECOND = (14, 5, "VALID", 6, 16)
THIRD = (5, 5, "VALID", 16, 120)
STEM = (32, 3, "SAME", 3, 16)  # ResNet
BLOCK = (16, 3, "SAME", 32, 32)


def work(layer, part="forward", replicas=8, batch=128, stride=1):
    image, kernel, padding, channels, features = layer
    shape = geometry((image, image), (kernel, kernel), (stride, stride), padding)
    return choice.Work(part, shape, replicas, batch, channels, features)


@pytest.mark.parametrize(
    ("layer", "forward", "input_gradient", "kernel_gradient"),
    [
        (FIRST, "blocks", "blocks", "blocks"),
        (SECOND, "rows", "rows", "direct"),
        (THIRD, "im2col", "im2col", "im2col"),
        (STEM, "blocks", "blocks", "direct"),
        (BLOCK, "direct", "direct", "direct"),
    ],
)
@pytest.mark.parametrize("replicas", [1, 8])
def test_the_choice_on_a_cpu(layer, forward, input_gradient, kernel_gradient, replicas):
    chosen = {part: choice.choose(work(layer, part, replicas), "cpu") for part in choice.PARTS}
    assert list(chosen.values()) == [forward, input_gradient, kernel_gradient]


def test_padding_of_a_strided_convolution_is_not_taken_for_waste():
    assert choice.choose(work((32, 3, [(1, 1), (1, 1)], 16, 32), "input_gradient", stride=2), "cpu") == "direct"


def test_a_first_layer_of_shared_images_is_narrow_and_has_many_features():
    shared = work((32, 5, "VALID", 3, 128), "kernel_gradient", replicas=1)
    assert choice.choose(shared, "cpu") == "blocks"
    assert choice.choose(shared._replace(features=16), "cpu") == "direct"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("part", choice.PARTS)
@pytest.mark.parametrize("replicas", [1, 8])
def test_the_choice_elsewhere_is_that_of_vmap_but_for_single_products_on_a_gpu(platform, part, replicas):
    for layer in (FIRST, SECOND, STEM, BLOCK):
        assert choice.choose(work(layer, part, replicas), platform) == "grouped"
    for layer in (THIRD, (8, 1, "VALID", 4, 4)):
        assert choice.choose(work(layer, part, replicas), platform) == ("im2col" if platform == "gpu" else "grouped")


@pytest.mark.parametrize(("lowering", "columns"), [("im2col", 1), ("toeplitz", 28), ("blocks", 4), ("rows", 4)])
def test_columns_in_a_product(lowering, columns):
    assert choice.block(lowering, work(FIRST)) == columns


def test_blocks_follow_the_width_of_the_result():
    assert choice.block("blocks", work(SECOND, "input_gradient")) == 2
    assert choice.block("blocks", work(STEM)) == 2
    assert choice.block("rows", work((14, 5, "VALID", 16, 120))) == 2
    assert choice.block("blocks", work((14, 3, "VALID", 3, 10))) == 3, "no number of columns fills whole vectors"
