"""What TensorStore reports of arrays that it could not write, to futures that nobody waits for."""

import asyncio
import gc

import pytest

from polycom_jax.training.orbax_errors import Silence


@pytest.mark.parametrize(
    ("begins", "told"),
    [("Error writing", 0), ('Error opening "zarr" driver: Error writing', 0), ("Error near", 1)],
)
def test_of_futures_nobody_asked_for_those_of_others_are_told(
    caplog: pytest.LogCaptureFixture, begins: str, told: int
):
    with Silence() as silence:
        loop = asyncio.new_event_loop()
        error = ValueError(f'OUT_OF_RANGE: {begins} "a/.zarray" in OCDBT database at local file')
        loop.create_future().set_exception(error)
        loop.close()
        gc.collect()
    assert (len(caplog.messages), len(silence.reports)) == (told, 1 - told)
