"""nepa_jax: self-supervised pretraining of vision transformers in JAX."""

__version__ = "0.1.0"
