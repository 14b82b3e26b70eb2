# make demo: the main job, with a real encoder.  make test: the tests.  Both set everything up in .venv first.

TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
# Nothing is downloaded from the Hub by the demo or the tests. Bars of work under two seconds are not shown.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true TQDM_DELAY=2

.PHONY: setup demo from-scratch model test test-lowest lint bench bench-growth support soak space space-test clean

setup: .venv/ready

# torch first and by itself: left to another package's requirement, pip would take its newest and largest build.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) "$(TORCH)"
	$(BIN)/python $(PIP) --editable ".[retrieval,faiss,chinese,unigram,onnx,plot,demo,dev]"
	touch $@

# With another encoder: DEMO_ENCODER=name-or-folder make demo
demo: setup
	$(if $(DEMO_ENCODER),,$(OFFLINE)) $(BIN)/python examples/demo.py

# Small encoders from nothing, with different pretraining.
from-scratch: setup
	$(OFFLINE) $(BIN)/python examples/from_scratch.py

# A small encoder from nothing, of 15 MB at most, to search with.
model: setup
	$(OFFLINE) $(BIN)/python examples/small_model.py

# Two files of tests at a time, with one thread each: most of them start processes and wait.
test: setup
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A short suite with the lowest versions that pyproject.toml allows; PYTHON=python3.10 TORCH=torch==2.11.0 for the oldest of all.
SHORT := tests/model tests/data/test_collator.py tests/data/test_sources.py tests/training/test_training.py \
	tests/training/test_pretraining.py tests/training/test_finetuning.py tests/training/test_dev_set.py \
	tests/training/test_adapters.py tests/publishing tests/retrieval/test_evaluation.py tests/commands/test_commands.py

test-lowest: .venv-lowest/ready
	$(OFFLINE) OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile $(SHORT)

# Most of it beside .venv, as make --jobs 2 does; the package itself after it, for both installations write its egg-info.
.venv-lowest/packages: tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(PIP) "$(TORCH)"
	.venv-lowest/bin/python $(PIP) --requirement tests/lowest.txt
	touch $@

.venv-lowest/ready: pyproject.toml .venv-lowest/packages .venv/ready
	.venv-lowest/bin/python $(PIP) --constraint tests/lowest.txt --editable ".[retrieval,faiss,chinese,unigram,onnx,plot,dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python $(PIP) --editable ".[bench]"
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --against pretense --output runs/benchmark/small.json
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --shape base --output runs/benchmark/base.json \
		--lengths 128 --parts collator step
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --shape base --output runs/benchmark/base-memory.json \
		--lengths 128 --tokens_per_batch 4096 --parts memory
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --lengths 128 --parts profile --output runs/benchmark/profile.json
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --shape base --lengths 128 --parts profile \
		--output runs/benchmark/profile-base.json
	$(OFFLINE) $(BIN)/python examples/measure/padding.py

# The same number of tokens a batch in ever longer passages.
bench-growth: setup
	$(OFFLINE) $(BIN)/python examples/measure/benchmark.py --lengths 128 512 2048 8192 --tokens_per_batch 8192 --dropout 0 \
		--rounds 3 --parts step memory --output runs/benchmark/growth.json

# Every objective with every family of encoders, tried out on tiny models.
support: setup
	$(OFFLINE) $(BIN)/python examples/measure/support.py

# Small runs, killed again and again, end as uncut ones do; random inputs give nothing but results and sentences.
soak: setup
	$(OFFLINE) $(BIN)/python examples/measure/soak.py
	$(OFFLINE) $(BIN)/python examples/measure/fuzz.py

# The page in a browser, with what `make model` or `make from-scratch` made, or CHECKPOINT=..., ENCODER=... and CORPUS=...
space: setup
	$(BIN)/python $(PIP) --editable ".[space]"
	$(BIN)/python examples/space/app.py

# Its tests need a Chromium: one on the path, or playwright's own (.venv/bin/playwright install chromium).
space-test: setup
	$(BIN)/python $(PIP) --editable ".[browser]"
	$(OFFLINE) $(BIN)/python -m pytest tests/examples/test_space.py

clean:
	rm -rf .venv .venv-lowest runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
