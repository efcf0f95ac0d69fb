"""PPO as one process per actor under MPI: OpenAI baselines' `ppo1` on PyTorch."""
