"""What the first host finds out, the others are told."""

from collections.abc import Callable

import jax

from nepa_jax.distributed import COMPARE_TIMEOUT_S, client
from nepa_jax.errors import UnavailableError


def from_first_host(answer: Callable[[], str]) -> str:
    """What process 0 answers, on all processes; all must ask, equally often.

    Storage may show its hosts different listings, and clocks differ: one of them decides.

    Raises:
        UnavailableError: process 0 gave no answer in time.
    """
    if not jax.distributed.is_initialized():
        return answer()
    me = jax.process_index()
    turn = client().key_value_increment(f"nepa_jax/answers/turns/{me}", 1)
    key = f"nepa_jax/answers/{turn}"
    if me == 0:
        text = answer()
        client().key_value_set(key, text)
        return text
    try:
        return client().blocking_key_value_get(key, COMPARE_TIMEOUT_S * 1000)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise UnavailableError(
            f"process 0 gave no answer within {COMPARE_TIMEOUT_S} s; see its log"
        ) from None
