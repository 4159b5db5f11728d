# Every target sets up .venv by itself; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup bench perf test test-all site serve render check train lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything that the other targets need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[site,test]' -c constraints.txt
	@touch $@

bench: $(READY)  ## prune the embedded model every way, measure, print the table (about 4 minutes on two cores)
	$(BIN)/python -m reference.bench --suite embedded

perf: $(READY)  ## time the hot paths beside copies and peers (under 10 minutes; --peers: tests/perf.py)
	$(BIN)/python -m tests.perf

test: $(READY)  ## lint, check the catalogue, run the tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-all: $(READY)  ## everything, every denoiser class included (under an hour)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m ''

check: $(READY)  ## check the catalogue and that README is rendered from it
	@$(BIN)/python -m scripts.validate
	@$(BIN)/python -m scripts.render --check

render: $(READY)  ## write README's lists and tables and the site's generated pages
	$(BIN)/python -m scripts.render

site: render  ## build the site into _site/
	$(BIN)/python -m scripts.export site/generated/data
	$(BIN)/mkdocs build --strict

serve: render  ## build the site and open it on localhost
	$(BIN)/mkdocs serve

MODEL ?= openmoji-mmdit
train: $(READY)  ## train an embedded model again: MODEL=openmoji-mmdit or openmoji-unet (hours on a CPU; resumes)
	$(BIN)/python -m reference train $(MODEL) --out out/$(MODEL)

clean:  ## remove what the targets made
	rm -rf .venv _site site/generated out
