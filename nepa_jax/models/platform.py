"""The platform a model is traced for: where the best form of a part differs by it, it asks here."""

import jax


def platform() -> str:
    """Its name, cpu, gpu or tpu: of the mesh that the trace is in, which need not be here; else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.platform
    chosen = jax.config.jax_default_device
    if chosen is None:
        return jax.default_backend()
    return chosen if isinstance(chosen, str) else chosen.platform
