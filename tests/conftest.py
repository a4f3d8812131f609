"""Every test runs on the CPU with eight host devices, set before jax is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"  # with few cores XLA:CPU otherwise aborts in collective rendezvous
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
