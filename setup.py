"""mmjax: multimodal pretraining in JAX."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "mmjax/__init__.py").read_text()).group(1)

setuptools.setup(
    name="mmjax",
    version=VERSION,
    description="Multimodal pretraining in JAX: one loop, every recipe, from a laptop to a pod",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=(setuptools.find_packages(include=["mmjax", "mmjax.*"])
              + setuptools.find_namespace_packages(include=["configs", "configs.*"])),
    package_data={"mmjax.data.scenes": ["*.json"]},
    entry_points={"console_scripts": ["mmjax = mmjax.cli:main"]},
    install_requires=[
        "absl-py", "array_record", "braceexpand", "clu", "cykooz.resizer", "etils[epath]", "flax", "fsspec", "grain",
        "jax", "ml_collections", "ml_dtypes", "numpy", "opencv-python-headless", "optax", "orbax-checkpoint", "pillow", "pyarrow", "rich",
        "safetensors", "scipy", "sentencepiece", "simplejpeg", "tensorboardX", "tensorflow-datasets",
        "tokenizers",
    ],
    extras_require={
        # What mmjax is compared with is installed for one version of Python only: torch is large.
        "test": ["pytest", "pytest-xdist", "aiohttp", "ipykernel", "libtpu", "matplotlib", "nbclient", "py3langid",
                 *(f"{name}; python_version < '3.12'" for name in ("apache-beam", "scikit-learn", "torch", "transformers"))],
        "notebooks": ["matplotlib", "notebook", "nbclient"],
        "plan": ["libtpu"],
        "build": ["py3langid"],
        "beam": ["apache-beam", "py3langid"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "gcs": ["gcsfs"],
        "s3": ["s3fs"],
        "http": ["aiohttp"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
    },
)
