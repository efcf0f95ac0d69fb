"""Installs the packages `ppo1` and `common`; the run scripts start from a checkout."""

from pathlib import Path

from setuptools import setup

setup(
    name="ppo1",
    version="1.0.0",
    description="OpenAI baselines' ppo1 for PyTorch, Gymnasium and MPI",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=["ppo1", "common"],
    package_data={"ppo1": ["py.typed"], "common": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "mpi4py>=4.0",
        "gymnasium[mujoco]>=1.0",
        "mujoco>=3.1",
        "cloudpickle>=3.0",
        "rich>=13.0",
    ],
    extras_require={
        "mpich": ["mpich>=4.2"],
        "atari": ["ale-py>=0.10", "opencv-python-headless>=4.8"],
        "robotics": ["gymnasium-robotics>=1.3", "mujoco<3.12"],
        "plot": ["pandas>=2.0", "matplotlib>=3.8"],
        "video": ["imageio>=2.31", "imageio-ffmpeg>=0.5", "pygame-ce>=2.1.3"],
        "export": ["onnx>=1.17", "onnxscript>=0.3"],
        "tensorboard": ["tensorboard>=2.15"],
        "wandb": ["wandb>=0.16"],
    },
)
