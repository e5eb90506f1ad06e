"""Named shapes have as many parameters as their authors say."""

import pytest

from longspan.plan.shapes import NAMES, named_shape
from longspan.utils.errors import ConfigError

# From the model cards and the sizes of their safetensors files.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-7b": 7_615_616_512,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters(name: str, parameters: int) -> None:
    assert named_shape(name).parameters == parameters


def test_every_name_is_checked() -> None:
    assert set(NAMES) == {*PARAMETERS, "tiny"}


def test_layers_can_be_cut() -> None:
    shape = named_shape("llama3-8b", layers=4)
    assert (shape.layers, len(shape.windows)) == (4, 4)


def test_mistyped_name_is_told() -> None:
    with pytest.raises(ConfigError, match="no shape") as error:
        named_shape("lama3-8b")
    assert error.value.fix == "did you mean 'llama3-8b'?"
