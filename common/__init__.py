"""The tools that the algorithm stands on; nothing here imports `ppo1`."""
